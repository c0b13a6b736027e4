#!/usr/bin/env bash
# Makes the environment in which benchmarks/recaption.py runs ray.data.llm: bash benchmarks/ray_data_llm_env.sh FOLDER
#
# Ray 2.60's ray.data.llm goes with vLLM 0.29, this project with a newer one, so they cannot share an environment.
# Takes a few minutes and 3 GB, once. TORCH_INDEX names another index for torch's CPU build.
set -euo pipefail
HERE="$(cd "$(dirname "$0")" && pwd)"
VENV="${1:?usage: ray_data_llm_env.sh FOLDER}"
PYTHON="${PYTHON:-python3.11}"

"$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -qq "$@"; }
pip install --upgrade pip
pip install torch==2.13.0 2>/dev/null || pip install torch==2.13.0 --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
pip install --requirement "$HERE/ray_data_llm_requirements.txt"
"$VENV/bin/python" "$HERE/../tools/repair_torchvision.py"  # and without torchaudio and torchcodec, which fail too
"$VENV/bin/python" -c 'import ray.data.llm, vllm, transformers'
touch "$VENV/ready"
