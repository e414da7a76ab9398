#!/usr/bin/env bash
# Install a CPU build of torch ("torch==2.13.0+cpu"), which PyPI does not carry: from where pip is set up to look, else from
# PyTorch's own index of CPU wheels. Exit status 1 when neither has it. Safe to run again.
#
#   usage: torch.sh PYTHON REQUIREMENT
#   env:   TORCH_CPU_INDEX    an index of CPU wheels (default https://download.pytorch.org/whl/cpu)
set -euo pipefail

[ $# -eq 2 ] || { echo "usage: ${0##*/} PYTHON REQUIREMENT" >&2; exit 2; }
python=$1 requirement=$2
index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

# --no-deps: what torch needs is on PyPI, and comes with the other requirements. A package client must not wait for minutes
# for an index that is not reached.
pip() { "$python" -m pip --quiet --disable-pip-version-check install --no-deps "$@" "$requirement"; }

if problem=$(pip 2>&1); then
    exit 0
fi
echo "pip finds no $requirement where it is set up to look; trying $index"
# --find-links and more indices of pip's configuration stay in force, so this can only add.
if problem+=$'\n'$(pip --retries 1 --timeout 20 --extra-index-url "$index" 2>&1); then
    exit 0
fi
# The first lines that say ERROR say why; pip repeats itself.
grep -E '^ERROR' <<<"$problem" | sort -u | head -n 4 >&2 || true
echo "No CPU build of torch to be had: $requirement is neither where pip looks nor on $index." >&2
echo "Set PIP_EXTRA_INDEX_URL to an index that carries it, or PIP_FIND_LINKS to a folder with the wheel, and run again." >&2
exit 1
