#!/bin/sh
# Keeps logs and spans within their sizes: deletes the oldest indices, never one that is written to. Elasticsearch itself
# deletes by age only. Looks every few minutes, for good: what goes wrong is told once, and tried again. Needs curl.
#
#   retention.sh             says each deletion in a line of JSON
#   retention.sh --healthy   whether a look succeeded lately
#
#   ELASTICSEARCH_URL    where it is
#   RETENTION_INTERVAL   seconds between looks, 300
#   and what settings.sh and call.sh read
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
program=elasticsearch-retention
url=${ELASTICSEARCH_URL:-http://elasticsearch:9200}
interval=${RETENTION_INTERVAL:-300}
looked=${TMPDIR:-/tmp}/retention.looked
if [ "${1:-}" = --healthy ]; then
    [ -r "$looked" ] && read -r at <"$looked" && [ $(($(date +%s) - at)) -le $((3 * interval)) ]
    exit
fi
work=$(mktemp -d)
sleeping=
trap 'rm -rf "$work" "$looked"; [ -z "$sleeping" ] || kill "$sleeping" 2>/dev/null' EXIT
trap 'exit 0' INT TERM
# shellcheck source-path=SCRIPTDIR source=call.sh
. "$here/call.sh"
# shellcheck source-path=SCRIPTDIR source=settings.sh
. "$here/settings.sh"
log_in retention es_retention_password

say() { # LEVEL MESSAGE [MORE]: a line of JSON; MORE is JSON, too
    printf '{"@timestamp":"%s","log.level":"%s","message":"%s"%s}\n' \
        "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$1" "$(quoted "$2")" "${3:-}"
}

trouble() { # ABOUT KIND LEVEL MESSAGE: say it once, until it is over or becomes another kind
    [ "$(cat "$work/trouble-$1" 2>/dev/null)" = "$2" ] || say "$3" "$4"
    echo "$2" >"$work/trouble-$1"
}

over() { # ABOUT MESSAGE: say so, if there was trouble
    [ -e "$work/trouble-$1" ] || return 0
    rm "$work/trouble-$1"
    say info "$2"
}

ask() { # METHOD PATH: whether it was answered with 200, or 404 where a deletion finds nothing left to do
    call 20 --request "$1" "$url$2"
    case $1$status in *200 | DELETE404) return 0 ;; esac
    trouble elasticsearch "$1$status" error "$1 $2 answered $(told); tried again every $interval s"
    return 1
}

# Before it is asked which one is written to: one that came in between is not among these, and so is never deleted.
# In columns, since no shell reads JSON.
list() { # TARGET: the target's indices, the oldest first
    ask GET "/_cat/indices/$1?h=index,creation.date,store.size&bytes=b&s=creation.date,index" || return 1
    cat "$work/answer" >"$work/indices"
}

keep_within() { # WHAT SETTING SIZE WRITTEN: delete the oldest that were listed, while all together are over the size
    if [ -z "$4" ]; then
        trouble elasticsearch "no-$1" error "$1: expected an index that is written to, found none; nothing is deleted"
        return 1
    fi
    limit=$(bytes "$3") total=0
    while read -r index _ size; do
        case $size in '' | *[!0-9]*) continue ;; esac # not to be known right now
        total=$((total + size))
    done <"$work/indices"
    while read -r index _ size; do
        [ "$total" -gt "$limit" ] || break
        case $index in "$4" | *[!a-z0-9._-]*) continue ;; esac
        case $size in '' | *[!0-9]*) continue ;; esac
        ask DELETE "/$index" || return 1
        [ "$status" = 404 ] || say info "deleted the oldest index of $1: together they were over $2 ($3)" \
            ",\"index\":\"$index\",\"index_bytes\":$size,\"total_bytes\":$total,\"limit_bytes\":$limit"
        total=$((total - size))
    done <"$work/indices"
    if [ "$total" -gt "$limit" ]; then
        trouble "$1" size warning \
            "$1 stay over $2 ($3): $total bytes are in $4, which is written to, so it has to roll over first"
    else
        over "$1" "$1 are within $2 ($3) again"
    fi
}

keep_logs() {
    list logs-vllm-default || return 1
    ask GET '/_data_stream/logs-vllm-default?filter_path=data_streams.indices.index_name' || return 1
    answer=$(cat "$work/answer")
    case $answer in # the last one is written to
    *'"index_name":"'*) written=${answer##*'"index_name":"'} written=${written%%'"'*} ;;
    *) written= ;;
    esac
    keep_within logs LOGS_RETENTION_SIZE "$logs_retention_size" "$written"
}

keep_spans() {
    list 'jaeger-span-*' || return 1
    ask GET '/_cat/aliases/jaeger-span-write?h=index,is_write_index' || return 1
    written=
    while read -r index writes; do
        case $writes in true*) written=$index ;; esac
    done <"$work/answer"
    keep_within spans TRACES_RETENTION_SIZE "$traces_retention_size" "$written"
}

say info "keeps logs within $logs_retention_size and spans within $traces_retention_size, looks every $interval s"
while :; do
    failed=
    keep_logs || failed=1
    keep_spans || failed=1
    if [ -z "$failed" ]; then
        over elasticsearch 'Elasticsearch answers again'
        date +%s >"$looked"
    fi
    sleep "$interval" &
    sleeping=$!
    wait "$sleeping" || :
done
