#!/usr/bin/env bash
# Build an OpenTelemetry Collector with its core components from Debian sid's Go packages, beside the system, without
# installing anything. Safe to run again. Minutes, 250 MB of packages; the result is one program of 45 MB.
#
#   usage: build.sh FOLDER      FOLDER/otelcol-core; FOLDER/version says which
# shellcheck disable=SC2016,SC2140  # apt-get fills in $(COMPONENT); the braces shall expand
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: ${0##*/} FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
source=$(cd "${BASH_SOURCE[0]%/*}" && pwd)/otelcol-core
exec 9>"$folder/lock"
flock 9
[ ! -e "$folder/version" ] || exit 0
command -v apt-get dpkg >/dev/null || { echo "only Debian's tools can unpack Debian's packages" >&2; exit 1; }

work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache/archives}/partial "$work"/{debs,packages,goroot,gocache}
mirror=$(apt-get indextargets --format '$(COMPONENT) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "main" {print $2; exit}')
printf 'Types: deb\nURIs: %s\nSuites: sid\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' "$mirror" >"$work/sid.sources"
# apt with lists, cache and status of its own: the system's are not touched
sid() {
    local program=$1
    shift
    "$program" -qq -o Dir::Etc::sourcelist="$work/sid.sources" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::State::status=/dev/null \
        -o APT::Sandbox::User=root "$@"
}
sid apt-get update
sid apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    golang-opentelemetry-collector-dev | grep -oE '^golang-[a-z0-9.+-]+-dev' | sort -u >"$work/names"
# Names of virtual packages have no candidate.
# shellcheck disable=SC2046
sid apt-cache policy $(cat "$work/names") |
    awk '/^golang/ {sub(":", "", $1); name = $1} /Candidate:/ && $2 != "(none)" {print name}' >"$work/have"
go=$(sid apt-cache search --names-only '^golang-1\.[0-9]+-go$' | sort -V | tail -n 1 | cut -d' ' -f1)
# shellcheck disable=SC2046
(cd "$work/debs" && sid apt-get download $(cat "$work/have") "$go" "${go%-go}-src")
for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/packages"; done
root=${go%-go}
ln -sfn "$work"/packages/usr/lib/"go-${root#golang-}"/{bin,pkg,VERSION,go.env} "$work/goroot"
ln -sfn "$work"/packages/usr/share/"go-${root#golang-}"/{src,api,misc,test,lib} "$work/goroot"
mkdir -p "$work/gopath/src"
cp -r "$source" "$work/gopath/src/otelcol-core"
version=$(awk '/^golang-opentelemetry-collector-dev_/ {print}' < <(ls "$work/debs") | cut -d_ -f2)
GOROOT=$work/goroot GO111MODULE=off GOPATH=$work/gopath:$work/packages/usr/share/gocode GOTOOLCHAIN=local CGO_ENABLED=0 \
    GOCACHE=$work/gocache GOFLAGS=-p=${BUILD_JOBS:-2} "$work/goroot/bin/go" build -o "$folder/otelcol-core" otelcol-core
echo "${version:-unknown}" >"$folder/version"
