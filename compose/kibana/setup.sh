#!/bin/sh
# Puts data view, saved searches and dashboard into Kibana; can run again, ours are replaced, yours are left alone.
# Needs curl.
#
#   KIBANA            where Kibana is, as seen from here
#   JAEGER_PUBLIC_URL where browsers find Jaeger: trace ids become links to it
#   SETUP_DEADLINE    seconds to wait for Kibana, 300
#   and what call.sh reads
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
program=kibana-setup
url=${KIBANA:-http://kibana:5601}
jaeger=${JAEGER_PUBLIC_URL:-http://127.0.0.1:16686}
deadline=${SETUP_DEADLINE:-300}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 143' INT TERM
# shellcheck source-path=SCRIPTDIR source=../elasticsearch/call.sh
. "$here/../elasticsearch/call.sh"

case $jaeger in
http://* | https://*) ;;
*) fail "JAEGER_URL: expected an address that begins with http:// or https://, found '$jaeger'" ;;
esac
case $jaeger in *[\"\\\ ]* | *[[:cntrl:]]*) fail "JAEGER_URL: expected an address, found '$jaeger'" ;; esac
jaeger=${jaeger%/}

log_in elastic es_elastic_password

until=$(($(date +%s) + deadline))
while :; do
    call 120 --header 'kbn-xsrf: true' "$url/api/status"
    case $status$(cat "$work/answer") in 200*'"level":"available"'*) break ;; esac
    [ "$(date +%s)" -lt "$until" ] || not_ready Kibana
    sleep 1
done
echo "Kibana is ready"

replaced "$(cat "$here/objects.ndjson")" @JAEGER_URL@ "$jaeger" >"$work/objects.ndjson"
call 120 --request POST --header 'kbn-xsrf: true' --form "file=@$work/objects.ndjson;type=application/ndjson" \
    "$url/api/saved_objects/_import?overwrite=true"
case $status$(cat "$work/answer") in
*'"success":false'*) fail "data view, searches and dashboard: some were refused: $(told)" ;;
200*'"success":true'*) echo "data view, searches and dashboard" ;;
*) fail "data view, searches and dashboard: POST /api/saved_objects/_import answered $(told)" ;;
esac
echo 'Kibana is set up'
