"""Other tools read the dataset without any code of this project, and see each text with its own image.

The expected content is known without the dataset: the URL of a sample names its scene, which has one image and one text
per captioner.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from braceexpand import braceexpand
from PIL import Image

from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.formats.dataset_index import SPLITS as SPLITS_JSON
from lotlip_data.manifests.formats.dataset_index import read_index
from lotlip_data.manifests.subcaptions import split
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset.dataset_card import braces
from lotlip_data.pipeline.dataset.metadata import Recipe
from lotlip_data.pipeline.dataset.publish import publish
from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from lotlip_data.synthetic.scenes import SPLITS, Scene, render, sample_scene
from tests.pipeline import run_fixture as fake_run

SHARDS, IMAGES, PIXELS = 2, 9, 32
UNCAPTIONED = 6
"""Images at the beginning of shard 0 without a text by llava: more than a reader uses to infer types."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of a run in which the texts by llava are missing for the first images and flagged for the last."""
    fake = fake_run.make(tmp_path_factory.mktemp("a run"), shards=SHARDS, images=IMAGES, pixels=PIXELS)
    rows = fake_run.captions_of(fake.run, "llava", 0)
    for row in rows[:UNCAPTIONED]:
        row |= {"text": None, "error": "poison"}
    rows[-1] |= {"flags": ["cut_off", "repetition"]}
    fake_run.write_captions(fake.run, "llava", 0, rows)
    recipe = Recipe({name: f"{name}@1" for name in WRITERS}, Filters())
    records = [fake_run.build(fake.run, recipe, shard) for shard in range(SHARDS)]
    publish(fake.run, fake.manifest, recipe, records)
    return Path(fake.run.shards)


def seeds() -> list[int]:
    return list(SPLITS["images"][: SHARDS * IMAGES])


def url_of(seed: int) -> str:
    return f"http://images.test/{seed}.jpg"


def picture(scene: Scene) -> bytes:
    """The stored JPEG of a scene."""
    content = io.BytesIO()
    render(scene, PIXELS).save(content, "JPEG", quality=95)
    return content.getvalue()


def check(samples: list[dict[str, Any]]) -> None:
    """Assert that each image occurs once, with the texts of its own scene. `samples` have the dataset's columns."""
    assert sorted(sample["url"] for sample in samples) == sorted(map(url_of, seeds()))
    for sample in samples:
        seed = int(sample["url"].rsplit("/", 1)[-1].removesuffix(".jpg"))
        scene = sample_scene(seed)
        assert sample["raw"] == raw_text(scene)
        assert sample["sha256"] == hashlib.sha256(picture(scene)).hexdigest()
        assert (sample["width"], sample["height"], sample["sources"]) == (PIXELS, PIXELS, ["web"])
        for name in WRITERS:
            lost = name == "llava" and seed - seeds()[0] < UNCAPTIONED
            assert sample[name] == (None if lost else long_text(scene, name))
            assert sample[name + "_sub"] == ([] if lost else split(long_text(scene, name)))
            flagged = name == "llava" and seed - seeds()[0] == IMAGES - 1
            assert sample[name + "_flags"] == ("cut_off repetition" if flagged else "")


def tars(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.tar")))


def test_webdataset_reads_the_tars(folder: Path) -> None:
    import webdataset

    samples = list(webdataset.WebDataset(tars(folder), shardshuffle=False).decode("pil"))
    check([sample["json"] for sample in samples])
    for sample in samples:
        scene = sample_scene(int(sample["json"]["url"].rsplit("/", 1)[-1].removesuffix(".jpg")))
        assert sample["jpg"].tobytes() == Image.open(io.BytesIO(picture(scene))).convert("RGB").tobytes()
        assert sample["txt"] == raw_text(scene)
        assert sample["__key__"] == sample["json"]["key"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def test_hugging_face_datasets_reads_the_tars(folder: Path, tmp_path: Path, offline: None) -> None:
    import datasets

    loaded = datasets.load_dataset("webdataset", data_files=tars(folder), split="train", cache_dir=str(tmp_path))
    samples = list(loaded)
    check([sample["json"] for sample in samples])
    for sample in samples:
        scene = sample_scene(int(sample["json"]["url"].rsplit("/", 1)[-1].removesuffix(".jpg")))
        stored = Image.open(io.BytesIO(picture(scene))).convert("RGB")
        assert sample["jpg"].convert("RGB").tobytes() == stored.tobytes()
        assert sample["txt"] == raw_text(scene)


def test_hugging_face_datasets_reads_texts_that_the_first_samples_of_a_split_lack(
    tmp_path: Path, offline: None
) -> None:
    """By the card, and of single tars with the columns that the card declares."""
    import datasets

    fake = fake_run.make(tmp_path / "a run", shards=SHARDS, images=IMAGES, pixels=PIXELS)
    rows = fake_run.captions_of(fake.run, "llava", 0)
    for row in rows:
        row |= {"text": None, "error": "poison"}
    fake_run.write_captions(fake.run, "llava", 0, rows)
    recipe = Recipe({name: f"{name}@1" for name in WRITERS}, Filters())
    publish(fake.run, fake.manifest, recipe, [fake_run.build(fake.run, recipe, shard) for shard in range(SHARDS)])
    loaded = datasets.load_dataset(fake.run.shards, split="train", cache_dir=str(tmp_path / "cache"))
    columns = datasets.load_dataset_builder(fake.run.shards).info.features
    direct = datasets.load_dataset(
        "webdataset",
        data_files=tars(Path(fake.run.shards)),
        split="train",
        features=columns,
        cache_dir=str(tmp_path / "direct"),
    )
    for table in (loaded, direct):
        texts = [sample["llava"] for sample in table["json"]]
        assert sum(text is None for text in texts) == IMAGES
        assert sum(bool(text) for text in texts) == IMAGES
        assert table[0]["jpg"].size == (PIXELS, PIXELS)


def test_hugging_face_datasets_reads_the_parquets(folder: Path, tmp_path: Path, offline: None) -> None:
    import datasets

    files = sorted(map(str, folder.glob("*.parquet")))
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert loaded.column_names == schema.dataset(WRITERS).names
    check(list(loaded))


@pytest.mark.parametrize("train", [True, False])
def test_the_loader_of_open_clip_reads_the_tars(folder: Path, train: bool) -> None:
    """By open_clip's argument parser and `get_data`, as in `python -m open_clip_train.main`; in both roles."""
    seen = through_open_clip("train" if train else "val", f"{folder}/train-{{00000..00001}}.tar", 18, 3)
    assert sorted(seen) == sorted(map(stored_with_text, seeds()))


def stored_with_text(seed: int) -> tuple[bytes, str]:
    scene = sample_scene(seed)
    return Image.open(io.BytesIO(picture(scene))).convert("RGB").tobytes(), raw_text(scene)


def through_open_clip(role: str, pattern: str, samples: int, batch: int) -> list[tuple[bytes, str]]:
    """The pixels and the text of every sample, as `python -m open_clip_train.main` reads them."""
    import torch
    from open_clip_train.data import get_data
    from open_clip_train.params import parse_args

    arguments = [f"--{role}-data", pattern, f"--{role}-num-samples", str(samples), "--batch-size", str(batch)]
    args = parse_args([*arguments, "--dataset-type", "webdataset", "--workers", "0"])
    args.world_size, args.rank, args.distributed = 1, 0, False

    def transform(image: Image.Image) -> torch.Tensor:
        return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)

    def tokenizer(text: str) -> list[str]:
        return [text]

    loader = get_data(args, (transform, transform), tokenizer=tokenizer)[role].dataloader
    return [(bytes(image.numpy()), text) for images, texts in loader for image, text in zip(images, texts, strict=True)]


def test_open_clip_reads_both_splits_by_the_patterns_of_the_card(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path / "run", images=20, pixels=PIXELS, validation=0.3, max_samples=6)
    recipe = Recipe({name: f"{name}@1" for name in WRITERS}, Filters.of(fake.manifest))
    publish(fake.run, fake.manifest, recipe, [fake_run.build(fake.run, recipe, n) for n in (0, 1)])
    content = read_index(fake.run)
    samples_of_all_splits = []
    for side, role in (("train", "train"), ("validation", "val")):
        names = [f"{fake.run.shards}/{output['tar']['name']}" for output in content[SPLITS_JSON[side]]]
        seen = through_open_clip(role, "::".join(names), content["splits"][side]["samples"], 1)
        assert len(seen) == content["splits"][side]["samples"] > 0
        samples_of_all_splits += seen
        from_card = braces([name.rpartition("/")[2] for name in names]).split("::")
        assert f"`{'::'.join(from_card)}`" in Path(fake.run.shards, "README.md").read_text()
        assert sorted(name for part in from_card for name in braceexpand(f"{fake.run.shards}/{part}")) == sorted(names)
    assert sorted(samples_of_all_splits) == sorted(map(stored_with_text, list(SPLITS["images"])[:40]))
