#!/usr/bin/env bash
# Make the environment in which benchmarks/recaption.py runs ray.data.llm: bash benchmarks/ray_data_llm_env.sh FOLDER
#
# ray.data.llm of Ray 2.60 needs vLLM 0.29. This project needs a newer vLLM, so they cannot share an environment.
# This takes a few minutes and 3 GB, once. TORCH_INDEX sets another index for torch's CPU build.
set -euo pipefail
HERE="$(cd "$(dirname "$0")" && pwd)"
VENV="${1:?usage: ray_data_llm_env.sh FOLDER}"
PYTHON="${PYTHON:-python3.11}"

"$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -qq "$@"; }
pip install --upgrade pip
pip install torch==2.13.0 2>/dev/null || pip install torch==2.13.0 --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
pip install --requirement "$HERE/ray_data_llm_requirements.txt"
"$VENV/bin/python" "$HERE/../tools/repair_torchvision.py"  # also uninstalls torchaudio and torchcodec if they fail
"$VENV/bin/python" -c 'import ray.data.llm, vllm, transformers'
touch "$VENV/ready"
