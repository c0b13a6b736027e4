"""A hub id's revision reaches all that is read of it: configuration, processor, weights, exported language model.

The hub is a local cache of one repository whose main branch is another checkpoint than the pinned commit.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.captioners import tiny_checkpoints

PINNED, MAIN = "a" * 40, "b" * 40
SCRIPT = """
import asyncio, json, sys
from PIL import Image
from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.registry import load_engine

def main():
    kind, engine_name, cache, *models = sys.argv[1:]
    images = [Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB")]
    found = []
    for model in models:
        name, _, revision = model.partition("@")
        settings = {"revision": revision or None, "max_new_tokens": 16, "dtype": "float32"}
        config = CaptionerConfig(name="x", kind=kind, model=name, **settings)
        engine = load_engine(config, engine_name, cache_dir=cache)

        async def all_of():
            return [(await engine.caption(engine.prepare(image))).text for image in images]

        found.append(asyncio.run(all_of()))
        engine.close()
    print(json.dumps(found))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("llava", "transformers"),
        ("instructblip", "transformers"),
        pytest.param("llava", "vllm", marks=pytest.mark.slow),
        pytest.param("instructblip", "vllm", marks=pytest.mark.slow),
    ],
)
def test_the_pinned_revision_is_what_captions(kind, engine, tmp_path):
    write = getattr(tiny_checkpoints, f"write_{kind}")
    pinned, main = write(tmp_path / "pinned", seed=0), write(tmp_path / "main", seed=1)
    processor = main / "preprocessor_config.json"
    processor.write_text(json.dumps(json.loads(processor.read_text()) | {"image_mean": [0.9, 0.1, 0.5]}))
    repository = tmp_path / "hub" / "models--org--model"
    for commit, folder in ((PINNED, pinned), (MAIN, main)):
        shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(MAIN)
    script = tmp_path / "captions.py"
    script.write_text(SCRIPT)
    called = subprocess.run(
        [sys.executable, script, kind, engine, tmp_path / "cache", f"org/model@{PINNED}", pinned, "org/model", main],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert called.returncode == 0, called.stderr
    from_pin, from_pinned_folder, from_main, from_main_folder = json.loads(called.stdout.splitlines()[-1])
    assert from_pin == from_pinned_folder
    assert from_main == from_main_folder
    assert from_pin != from_main
