#!/usr/bin/env bash
# Unpack Debian sid's kubectl beside the system, without installing anything. Safe to run again.
#
#   usage: unpack-kubectl.sh FOLDER      FOLDER/kubectl
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: ${0##*/} FOLDER" >&2; exit 2; }
folder=$1
[ ! -x "$folder/kubectl" ] || exit 0
command -v apt-get dpkg >/dev/null || { echo "only Debian's tools can unpack Debian's packages" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache/archives}/partial "$work/debs" "$folder"
mirror=$(apt-get indextargets --format '$(COMPONENT) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "main" {print $2; exit}')
printf 'Types: deb\nURIs: %s\nSuites: sid\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' "$mirror" >"$work/sid.sources"
# apt with lists, cache and status of its own: the system's are not touched
sid() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/sid.sources" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$work/lists" \
        -o Dir::Cache="$work/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root "$@"
}
sid update
(cd "$work/debs" && sid download kubectl)
dpkg -x "$work"/debs/kubectl*.deb "$work/root"
"$work/root/usr/bin/kubectl" version --client >/dev/null
install "$work/root/usr/bin/kubectl" "$folder/kubectl"
