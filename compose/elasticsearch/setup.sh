#!/bin/sh
# Sets up Elasticsearch: users and what they may, retention, templates, pipelines. Runs at every `up` and can run again:
# each step puts the whole of what it is about. Needs curl.
#
#   ELASTICSEARCH_URL   where it is
#   SETUP_DEADLINE      seconds to wait for it, 300
#   and what settings.sh and call.sh read
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
program=elasticsearch-setup
url=${ELASTICSEARCH_URL:-http://elasticsearch:9200}
deadline=${SETUP_DEADLINE:-300}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 143' INT TERM
# shellcheck source-path=SCRIPTDIR source=call.sh
. "$here/call.sh"
# shellcheck source-path=SCRIPTDIR source=settings.sh
. "$here/settings.sh"

log_in elastic es_elastic_password

ask() { # METHOD PATH, the body on standard input if there is one
    call 60 --request "$1" --header 'Content-Type: application/json' --data-binary @- "$url$2"
}

put() { # WHAT METHOD PATH: send the body that comes on standard input
    what=$1
    ask "$2" "$3"
    case $status in
    200 | 201) echo "$what" ;;
    *) fail "$what: $2 $3 answered $(told)" ;;
    esac
}

put_file() { # WHAT PATH FILE
    text=$(cat "$here/$3")
    text=$(replaced "$text" @LOGS_RETENTION@ "$logs_retention")
    text=$(replaced "$text" @LOGS_ROLLOVER_SIZE@ "$logs_rollover_size")
    text=$(replaced "$text" @TRACES_RETENTION@ "${traces_retention_days}d")
    text=$(replaced "$text" @TRACES_ROLLOVER_SIZE@ "$traces_rollover_size")
    # One more: the index of a day is as old as its first entry, and the last one shall be kept that long, too.
    text=$(replaced "$text" @TRACES_DELETE_AGE@ "$((traces_retention_days + 1))d")
    printf '%s\n' "$text" | put "$1" PUT "$2"
}

user() { # NAME SECRET
    put_file "role $1" "/_security/role/$1" "role-$1.json"
    password=$(secret "$2")
    printf '{"password":"%s","roles":["%s"]}' "$(quoted "$password")" "$1" | put "user $1" PUT "/_security/user/$1"
}

# ---- wait -----------------------------------------------------------------------------------------------------------
until=$(($(date +%s) + deadline))
while :; do
    ask GET '/_cluster/health?wait_for_status=yellow&timeout=10s' </dev/null
    [ "$status" = 200 ] && break
    [ "$(date +%s)" -lt "$until" ] || not_ready Elasticsearch
    sleep 1
done
echo "Elasticsearch is ready"

# ---- who may what -----------------------------------------------------------------------------------------------------
password=$(secret es_kibana_password)
printf '{"password":"%s"}' "$(quoted "$password")" |
    put 'user kibana_system' POST /_security/user/kibana_system/_password
user filebeat_writer es_filebeat_password
user jaeger_writer es_jaeger_password
user grafana_reader es_grafana_password
user retention es_retention_password

# ---- how long, and how it is stored -----------------------------------------------------------------------------------
put_file 'retention of logs' /_ilm/policy/vllm-vitals-logs logs-policy.json
put_file 'retention of spans' /_ilm/policy/vllm-vitals-spans spans-policy.json
put_file "retention of the rest of Jaeger's" /_ilm/policy/vllm-vitals-traces traces-policy.json
printf '{"template":{"mappings":%s},"_meta":{"managed_by":"vllm-vitals"}}' "$(cat "$here/logs-fields.json")" |
    put 'fields of logs' PUT /_component_template/vllm-vitals-logs-mappings
put_file 'pipeline for JSON lines' /_ingest/pipeline/vllm-vitals-logs-json logs-json-pipeline.json
put_file 'pipeline for logs' /_ingest/pipeline/vllm-vitals-logs logs-pipeline.json
put_file 'settings of logs' /_component_template/vllm-vitals-logs-settings logs-settings.json
put_file 'template of logs' /_index_template/vllm-vitals-logs logs-template.json
for name in span service dependencies sampling; do
    put_file "template of jaeger-$name" "/_index_template/jaeger-$name" "jaeger-$name.json"
done

# ---- what is written to --------------------------------------------------------------------------------------------------
ask GET /_data_stream/logs-vllm-default </dev/null
case $status in
404) put 'data stream of logs' PUT /_data_stream/logs-vllm-default </dev/null ;;
200)
    # One from an earlier version takes new fields at once; a changed type waits for a new index.
    ask PUT '/logs-vllm-default/_mapping?write_index_only=true' <"$here/logs-fields.json"
    case $status in
    200) echo 'data stream of logs: fields' ;;
    400) put 'data stream of logs: new index' POST '/logs-vllm-default/_rollover?lazy=true' </dev/null ;;
    *) fail "data stream of logs: PUT /logs-vllm-default/_mapping answered $(told)" ;;
    esac
    ;;
*) fail "data stream of logs: GET /_data_stream/logs-vllm-default answered $(told)" ;;
esac

# Jaeger writes to an alias. Elasticsearch moves that on, but the first index behind it has to be there.
for name in span service; do
    ask GET "/_alias/jaeger-$name-write" </dev/null
    case $status in
    200) ;;
    404)
        printf '{"aliases":{"jaeger-%s-write":{"is_write_index":true}}}' "$name" |
            put "first index of jaeger-$name" PUT "/jaeger-$name-000001"
        ;;
    *) fail "first index of jaeger-$name: GET /_alias/jaeger-$name-write answered $(told)" ;;
    esac
    # An earlier version wrote an index a day, and that has not the alias which is read now.
    put "what is read of jaeger-$name" PUT "/jaeger-$name-*/_alias/jaeger-$name-read" </dev/null
done
echo 'Elasticsearch is set up'
