"""open_clip reads several captions of each image from the tars of an export and of a dataset.

Its main branch has the options `--json-text-key` and `--json-text-key-probs` (4.2.0.dev0, commit 89fb801); no release
in the registry has them. `Reader` follows the rule in their help texts. `OPEN_CLIP=FOLDER` names a checkout of that
branch, and its own loader then reads the same tars.
"""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import webdataset

from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset.metadata import Recipe
from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from lotlip_data.synthetic.scenes import sample_scene
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.exporting.export_fixture import export_one

IMAGES = 40
KEYS, WEIGHTS = ("llava", "instructblip", "raw"), (0.75, 0.25)


@dataclass(frozen=True)
class Reader:
    """The text of each sample by open_clip's rule.

    Attributes:
        keys: `--json-text-key`, split at semicolons.
        weights: `--json-text-key-probs`. Keys without one have 0. None: the order of the keys counts.
    """

    keys: Sequence[str]
    weights: Sequence[float] | None = None

    def read(self, tars: str) -> Iterator[tuple[str, str]]:
        """Key and text of each sample that has an image and a text."""
        for sample in webdataset.WebDataset(tars, shardshuffle=False):
            if "jpg" in sample and "json" in sample and (text := self.text(json.loads(sample["json"]))):
                yield sample["__key__"], text

    def text(self, meta: dict[str, object]) -> str:
        """The first value in the order of the keys that is a text and not blank; empty if there is none."""
        values = (meta.get(key) for key in self._order())
        return next((value.strip() for value in values if isinstance(value, str) and value.strip()), "")

    def _order(self) -> list[str]:
        """The keys in an order drawn by weight; those of weight 0 come last, in their own order."""
        if self.weights is None:
            return list(self.keys)
        left = {key: weight for key, weight in zip(self.keys, self.weights, strict=False) if weight > 0}
        order = []
        while left:
            order += random.choices(list(left), list(left.values()))
            del left[order[-1]]
        return order + [key for key in self.keys if key not in order]


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tar of an export and one of a dataset; the first image has no text by llava, the second by no captioner."""
    folder = tmp_path_factory.mktemp("open_clip")
    fake = fake_run.make(folder / "run", shards=1, images=IMAGES, min_long_texts=0)
    for name, without in (("llava", 2), ("instructblip", 2), ("sharegpt4v", 2)):
        rows = fake_run.captions_of(fake.run, name, 0)
        for row in rows[0 if name == "llava" else 1 : without]:
            row |= {"text": None, "error": "poison"}
        fake_run.write_captions(fake.run, name, 0, rows)
    _, exported = export_one(fake, folder / "out", "webdataset")
    fake_run.build(fake.run, Recipe({name: f"{name}@1" for name in WRITERS}, Filters(min_long_texts=0)), 0)
    return {"export": exported, "dataset": Path(fake.run.shards, "train-00000.tar")}


def texts_of(tar: Path) -> dict[str, dict[str, str]]:
    """By key of a sample, the texts of its scene by name."""
    samples = webdataset.WebDataset(str(tar), shardshuffle=False)
    metas = {sample["__key__"]: json.loads(sample["json"]) for sample in samples}
    scenes = {
        key: sample_scene(int(meta["url"].rsplit("/", 1)[-1].removesuffix(".jpg"))) for key, meta in metas.items()
    }
    return {
        key: {"raw": raw_text(scene)} | {name: long_text(scene, name) for name in WRITERS}
        for key, scene in scenes.items()
    }


def check(tar: Path, read: Sequence[tuple[str, str]]) -> None:
    """Assert that all samples are read, with texts of their own in the shares of the weights."""
    expected, names = texts_of(tar), Counter[str]()
    assert len(read) == len(expected) * (len(read) // IMAGES) and {key for key, _ in read} == expected.keys()
    for key, text in read:
        (name,) = (name for name, of_name in expected[key].items() if of_name == text)
        names[name] += 1
    assert names.keys() == set(KEYS)
    assert names["raw"] * IMAGES == len(read)  # of the image without any caption
    assert 0.65 < names["llava"] / len(read) < 0.85


@pytest.mark.parametrize("kind", ["export", "dataset"])
def test_a_reader_by_the_rule_of_open_clip_draws_the_texts_by_their_weights(tars: dict[str, Path], kind: str) -> None:
    random.seed(0)
    check(tars[kind], [pair for _ in range(10) for pair in Reader(KEYS, WEIGHTS).read(str(tars[kind]))])
    expected = texts_of(tars[kind])
    first = [(expected[key], text) for key, text in Reader(KEYS).read(str(tars[kind]))]
    names = Counter(name for texts, read in first for name, text in texts.items() if text == read)
    assert names == {"llava": IMAGES - 2, "instructblip": 1, "raw": 1}


@pytest.mark.skipif("OPEN_CLIP" not in os.environ, reason="needs a checkout of open_clip's main branch in OPEN_CLIP")
@pytest.mark.parametrize("kind", ["export", "dataset"])
def test_the_loader_of_open_clip_main_draws_the_texts_by_their_weights(tars: dict[str, Path], kind: str) -> None:
    """By its argument parser and `get_data`, as in `python -m open_clip_train.main`."""
    options = ["--train-num-samples", str(IMAGES), "--batch-size", "8", "--workers", "0"]
    options += ["--json-text-key", ";".join(KEYS), "--json-text-key-probs", *map(str, WEIGHTS)]
    arguments = ["--train-data", str(tars[kind]), "--dataset-type", "webdataset", *options]
    environment = os.environ | {"PYTHONPATH": str(Path(os.environ["OPEN_CLIP"], "src"))}
    program = [sys.executable, "-c", _PROGRAM, *arguments]
    ended = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    keys = {text: key for key, texts in texts_of(tars[kind]).items() for text in texts.values()}
    check(tars[kind], [(keys[text], text) for text in json.loads(ended.stdout.splitlines()[-1])])


_PROGRAM = """
import json, sys
import torch
from open_clip_train.data import get_data
from open_clip_train.params import parse_args

args = parse_args(sys.argv[1:])
args.world_size, args.rank, args.distributed = 1, 0, False

def transform(image):
    return torch.zeros(1)

loader = get_data(args, (transform, transform), tokenizer=lambda text: [text])["train"].dataloader
print(json.dumps([text for _ in range(10) for batch in loader for text in batch['text']]))
"""
