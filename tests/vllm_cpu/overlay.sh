#!/bin/sh
# overlay.sh BASE OVERLAY PACKAGE   make OVERLAY: vLLM's environment BASE as it is, and PACKAGE installed into it with pip
# What pip puts there lies in OVERLAY, so BASE stays a vLLM without the plugin. PACKAGE is installed editable.
set -eu
base=$1 overlay=$2 package=$3
# One whose making was interrupted has a Python without pip.
"$overlay/bin/python" -c 'import pip' 2>/dev/null || "$base/bin/python" -m venv --clear "$overlay"
site=$("$overlay/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/vllm-base.pth"
{
    printf '#!%s\n' "$overlay/bin/python"
    sed 1d "$base/bin/vllm"
} >"$overlay/bin/vllm"
chmod +x "$overlay/bin/vllm"
stamp="$overlay/installed-$(cat "$package/pyproject.toml" "$0" | cksum | tr -d ' ')"
[ -e "$stamp" ] || {
    "$overlay/bin/python" -m pip --quiet --disable-pip-version-check install -e "${package}[tracing]"
    rm -f "$overlay"/installed-*
    : >"$stamp"
}
