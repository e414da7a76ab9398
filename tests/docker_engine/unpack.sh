#!/usr/bin/env bash
# Unpack Docker Engine, Compose and what the bundle's tests put into images from Debian's packages. Nothing is
# installed; safe to run again. The newest programs come from sid, where they need an old C library only; what is bound
# to this system's release comes from that.
#
#   usage: unpack.sh FOLDER      FOLDER/bin, FOLDER/cli-plugins, FOLDER/root; FOLDER/versions says what is there
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: ${0##*/} FOLDER" >&2; exit 2; }
folder=$1
mkdir -p "$folder"
exec 9>"$folder/lock"
flock 9
[ ! -e "$folder/versions" ] || exit 0
command -v apt-get dpkg >/dev/null || { echo "only Debian's tools can unpack Debian's packages" >&2; exit 1; }

newest=(docker.io docker-cli docker-compose docker-buildx containerd prometheus promtool prometheus-alertmanager
    prometheus-node-exporter)
fitting=(runc tini busybox-static) # sid's runc wants sid's C library

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache/archives}/partial "$work/debs" "$work/root"
release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v release="$release" '$1 == release && $2 == "main" {print $3; exit}')
[ -n "$mirror" ] || { echo "apt knows no 'main' of Debian $release" >&2; exit 1; }
printf 'Types: deb\nURIs: %s\nSuites: %s sid\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
    "$mirror" "$release" >"$work/debian.sources"
# apt with lists, cache and status of its own: the system's are not touched
own_apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/debian.sources" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::State::status=/dev/null \
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}
own_apt update
(cd "$work/debs" && own_apt download "${newest[@]/%//sid}" "${fitting[@]/%//$release}")
for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/root"; done

for program in docker containerd containerd-shim-runc-v2 dockerd docker-proxy runc tini-static; do
    found=$(find "$work/root/usr/bin" "$work/root/usr/sbin" -name "$program" | head -n 1)
    [ -n "$found" ] || { echo "Debian's packages hold no $program" >&2; exit 1; }
    ! ldd "$found" 2>&1 | grep -q 'not found' || { echo "$program from sid does not run here" >&2; exit 1; }
    install -D "$found" "$folder/bin/${program/tini-static/docker-init}"
done
install -D -t "$folder/cli-plugins" "$work"/root/usr/libexec/docker/cli-plugins/docker-{compose,buildx}
rm -rf "$folder/root"
mkdir -p "$folder/root"
cp -a "$work/root/usr/share/prometheus" "$folder/root/share" 2>/dev/null || true
find "$work/root" \( -name prometheus -o -name promtool -o -name amtool -o -name prometheus-alertmanager \
    -o -name prometheus-node-exporter -o -name busybox \) -type f -perm -u+x -path '*bin/*' -exec cp -t "$folder/root" {} +
cp -a "$work/root/usr/share/prometheus/alertmanager" "$folder/root/alertmanager-share" 2>/dev/null || true
(cd "$work/debs" && ls) >"$folder/versions"
