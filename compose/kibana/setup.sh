#!/bin/sh
# Puts data view, saved searches and dashboard into Kibana; can run again, ours are replaced, yours are left alone.
# Needs curl. The password is read from a file, and stands in no argument, no environment and no output.
#
#   KIBANA            where Kibana is, as seen from here
#   JAEGER_PUBLIC_URL where browsers find Jaeger: trace ids become links to it
#   SECRETS           folder of the password, /run/secrets
#   SETUP_DEADLINE    seconds to wait for Kibana, 300
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
url=${KIBANA:-http://kibana:5601}
jaeger=${JAEGER_PUBLIC_URL:-http://127.0.0.1:16686}
secrets=${SECRETS:-/run/secrets}
deadline=${SETUP_DEADLINE:-300}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 143' INT TERM

fail() {
    echo "kibana-setup: $*" >&2
    exit 1
}

replaced() { # TEXT MARK VALUE: print the text with each mark replaced
    left=$1 made=
    while :; do
        case $left in
        *"$2"*) made=$made${left%%"$2"*}$3 left=${left#*"$2"} ;;
        *) break ;;
        esac
    done
    printf '%s' "$made$left"
}

case $jaeger in
http://* | https://*) ;;
*) fail "JAEGER_URL: expected an address that begins with http:// or https://, found '$jaeger'" ;;
esac
case $jaeger in *[\"\\\ ]* | *[[:cntrl:]]*) fail "JAEGER_URL: expected an address, found '$jaeger'" ;; esac
jaeger=${jaeger%/}

file=$secrets/es_elastic_password
[ -r "$file" ] || fail "$file: expected a file that can be read, found none"
IFS= read -r password <"$file" || [ -n "$password" ] || fail "$file: expected a password, found nothing"
case $password in *[[:cntrl:]]*) fail "$file: expected text, found control characters" ;; esac
password=$(replaced "$password" '\' '\\')
password=$(replaced "$password" '"' '\"')
printf 'user = "elastic:%s"\n' "$password" >"$work/login"

call() { # CURL'S ARGUMENTS...; sets status and leaves the answer in $work/answer
    : >"$work/answer"
    status=$(curl --config "$work/login" --silent --noproxy '*' --max-time 120 --output "$work/answer" \
        --write-out '%{http_code}' --header 'kbn-xsrf: true' "$@") || status=000
}

told() {
    answer=$(tr '\n' ' ' <"$work/answer" | cut -c 1-500)
    [ "$status" = 000 ] && answer="no answer from $url"
    printf '%s: %s' "$status" "$answer"
}

until=$(($(date +%s) + deadline))
while :; do
    call "$url/api/status"
    case $status$(cat "$work/answer") in 200*'"level":"available"'*) break ;; esac
    if [ "$(date +%s)" -ge "$until" ]; then
        [ "$status" = 401 ] && fail "Kibana refuses the password of user elastic, for $deadline s: was it changed" \
            "elsewhere than in secrets/es_elastic_password?"
        fail "Kibana is not ready after $deadline s: $(told)"
    fi
    sleep 1
done
echo "Kibana is ready"

replaced "$(cat "$here/objects.ndjson")" @JAEGER_URL@ "$jaeger" >"$work/objects.ndjson"
call --request POST --form "file=@$work/objects.ndjson;type=application/ndjson" \
    "$url/api/saved_objects/_import?overwrite=true"
case $status$(cat "$work/answer") in
*'"success":false'*) fail "data view, searches and dashboard: some were refused: $(told)" ;;
200*'"success":true'*) echo "data view, searches and dashboard" ;;
*) fail "data view, searches and dashboard: POST /api/saved_objects/_import answered $(told)" ;;
esac
echo 'Kibana is set up'
