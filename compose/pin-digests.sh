#!/bin/sh
# Pin each image of .env to the digest that its registry has for the tag: NAME:TAG becomes NAME:TAG@sha256:...
# Needs docker with buildx and a way to the registries; safe to run again: what has a digest is asked anew.
#
#   usage: ./pin-digests.sh [FILE]      FILE is .env by default; the one before is kept as FILE.bak-TIME
set -eu
cd "$(dirname "$0")"
file=${1:-.env}
[ -f "$file" ] || { echo "pin-digests: expected $file, found none: vllm-vitals bundle init makes it" >&2; exit 2; }
command -v docker >/dev/null || { echo "pin-digests: docker is missing" >&2; exit 2; }

new=$(mktemp "$file.XXXXXX")
trap 'rm -f "$new"' EXIT
failed=0
while IFS= read -r line || [ -n "$line" ]; do
    case $line in
    *_IMAGE=*:local) ;; # we build these
    *_IMAGE=*)
        image=${line#*=}
        image=${image%%@*}
        if digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}') && [ -n "$digest" ]; then
            line=${line%%=*}=$image@$digest
        else
            echo "pin-digests: $image: no answer from its registry, left as it was" >&2
            failed=1
        fi
        ;;
    esac
    printf '%s\n' "$line"
done <"$file" >"$new"
cp -p "$file" "$file.bak-$(date +%Y%m%d-%H%M%S)"
cat "$new" >"$file" # keeps owner and mode
exit "$failed"
