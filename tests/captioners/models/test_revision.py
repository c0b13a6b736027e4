"""A hub id's revision applies to all that is read: configuration, processor, weights, exported language model.

The hub is a local cache of repositories whose main branch differs from the pinned commit.
"""

import functools
import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.captioners import tiny_checkpoints

PINNED, MAIN = "a" * 40, "b" * 40
KINDS = ("llava", "instructblip")
SCRIPT = """
import asyncio, json, sys
from PIL import Image
from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.registry import load_engine

IMAGES = [Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB")]

def caption(kind, engine_name, cache, model):
    name, _, revision = model.partition("@")
    settings = {"revision": revision or None, "max_new_tokens": 16, "dtype": "float32"}
    engine = load_engine(CaptionerConfig(name="x", kind=kind, model=name, **settings), engine_name, cache_dir=cache)

    async def caption_all():
        return [(await engine.caption(engine.prepare(image))).text for image in IMAGES]

    texts = asyncio.run(caption_all())
    engine.close()
    return texts

if __name__ == "__main__":
    engine_name, cache, models = sys.argv[1:]
    jobs = json.loads(models).items()
    print(json.dumps({kind: [caption(kind, engine_name, cache, model) for model in names] for kind, names in jobs}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A cache of the hub, and by kind the folders of the pinned commit and of the main branch."""
    hub = tmp_path_factory.mktemp("hub")
    folders = {}
    for kind in KINDS:
        write = getattr(tiny_checkpoints, f"write_{kind}")
        folder = tmp_path_factory.mktemp(kind)
        pinned, main = write(folder / "pinned", seed=0), write(folder / "main", seed=1)
        processor = main / "preprocessor_config.json"
        processor.write_text(json.dumps(json.loads(processor.read_text()) | {"image_mean": [0.9, 0.1, 0.5]}))
        repository = hub / f"models--org--{kind}"
        for commit, checkpoint in ((PINNED, pinned), (MAIN, main)):
            shutil.copytree(checkpoint, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(MAIN)
        folders[kind] = (str(pinned), str(main))
    return hub, folders


@pytest.fixture(scope="module")
def captions(hub, tmp_path_factory):
    """`captions(engine, kinds)`: by kind, the captions of the pin, its folder, the main branch and its folder.

    A new process, whose hub is the cache, captions for all `kinds`.
    """
    cache, folders = hub

    @functools.cache
    def run(engine, kinds):
        scratch = tmp_path_factory.mktemp(engine)
        script = scratch / "captions.py"
        script.write_text(SCRIPT)
        models = {}
        for kind in kinds:
            pinned, main = folders[kind]
            models[kind] = [f"org/{kind}@{PINNED}", pinned, f"org/{kind}", main]
        process = subprocess.run(
            [sys.executable, script, engine, scratch / "cache", json.dumps(models)],
            env=os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_pinned_revision_writes_the_captions(engine, kind, captions):
    kinds = (kind,) if engine == "vllm" else KINDS  # vLLM takes half a minute to start each of four engines
    from_pin, from_pinned_folder, from_main, from_main_folder = captions(engine, kinds)[kind]
    assert from_pin == from_pinned_folder
    assert from_main == from_main_folder
    assert from_pin != from_main
