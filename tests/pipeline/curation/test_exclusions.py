"""Samples and texts are left out for their reasons, counted and listed, and nothing else is left out.

The images are smooth noise: their perceptual hashes differ from one another, and hardly change with the JPEG quality.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.manifest import Manifest, ManifestError, load, parse
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.curation import decontamination, exclusions, filters
from lotlip_data.pipeline.curation.decontamination import EvaluationSetError
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.curation.perceptual_hash import perceptual_hash
from lotlip_data.pipeline.dataset.stage import shard
from lotlip_data.pipeline.dataset.verify import verify
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.run_fixture import Row

TEXT = "a photo of the thing"


def noise(seed: int, pixels: int = 96) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((pixels, pixels), Image.Resampling.BICUBIC)


def stored(image: Image.Image, quality: int = 95) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()


def run_of(
    folder: Path, shards: list[list[bytes | tuple[bytes, Mapping[str, Any]]]], **clean: Any
) -> tuple[Run, Manifest]:
    """A run with these images and captions by one captioner. An image may come with other fields of its row."""
    fake = fake_run.make(folder, shards=0, writers=["llava"], clean=clean)
    for number, images in enumerate(shards):
        add(fake.run, number, images)
    return fake.run, fake.manifest


def add(run: Run, number: int, images: list[Any]) -> None:
    members = []
    for index, image in enumerate(images):
        content, fields = image if isinstance(image, tuple) else (image, {})
        row = fake_run.listed_row(
            f"{shard_name(number)}{index:04d}", f"http://images.test/{number}/{index}", [TEXT], ["web"]
        )
        sizes = dict.fromkeys(("width", "height", "original_width", "original_height"), 96)
        row |= {"status": "success", "sha256": hashlib.sha256(content).hexdigest(), **sizes, **fields}
        members.append((row, content))
    fake_run.commit_images(run, number, [row for row, _ in members], members)
    captions = [fake_run.caption(row, "One thing. Another thing.") for row, _ in members]
    fake_run.write_captions(run, "llava", number, captions)


def keys(run: Run) -> list[str]:
    index = dataset_index.read_index(run)
    outputs = [*index["shards"], *index["validation"]]
    return sorted(key for output in outputs for key in table(run, output)["key"])


def table(run: Run, output: dict[str, Any]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(f"{run.shards}/{output['parquet']['name']}").to_pydict()
    return columns


def listed(run: Run) -> dict[str, tuple[str, str, str]]:
    """The rows of the lists in quarantine by key: what, reason and detail."""
    rows: list[Row] = [
        row for path in Path(run.quarantine("shard")).iterdir() for row in pq.read_table(path).to_pylist()
    ]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: (row["what"], row["reason"], row["detail"]) for row in rows}


def test_hashes_survive_scaling_and_compression_and_differ_between_images() -> None:
    def bits(a: bytes, b: bytes) -> int:
        first, second = perceptual_hash(a), perceptual_hash(b)
        assert first is not None and second is not None
        return (first ^ second).bit_count()

    for seed in range(20):
        image = stored(noise(seed, 512))
        assert bits(image, stored(noise(seed, 512), 30)) <= 4
        assert bits(image, stored(noise(seed, 96))) <= 4
        assert bits(image, stored(noise(seed + 100, 512))) > 12
    assert perceptual_hash(b"no image") is None
    assert perceptual_hash(stored(noise(0))[:300]) is None


def test_duplicates_are_left_out_and_the_earliest_stays(tmp_path: Path, ray_cluster: None) -> None:
    images = [stored(noise(seed)) for seed in range(4)]
    shards: list[list[Any]] = [
        [images[0], images[1]],
        [images[2], images[0]],
        [images[1], stored(noise(2), 60), images[3]],
    ]
    run, manifest = run_of(tmp_path, shards, duplicates=True, near_duplicates=4)
    summary = shard(manifest, run)
    assert summary.dropped == {"duplicate": 2, "near_duplicate": 1} and not summary.failed
    assert json.loads(json.dumps(summary.to_dict()))["dropped"] == summary.dropped
    assert keys(run) == ["000000000", "000000001", "000010000", "000020002"]
    assert listed(run) == {
        "000010001": ("sample", "duplicate", "000000000"),
        "000020000": ("sample", "duplicate", "000000001"),
        "000020001": ("sample", "near_duplicate", "000010000"),
    }
    index = dataset_index.read_index(run)
    assert (index["fetched"], index["samples"], index["dropped"]) == (
        7,
        4,
        summary.dropped,
    )
    assert verify(run) == [] and shard(manifest, run).nothing_to_do


def sized(image: bytes, width: int, height: int) -> tuple[bytes, dict[str, int]]:
    return image, {"original_width": width, "original_height": height}


@pytest.mark.parametrize(("keep", "kept"), [({}, "000010000"), ({"keep": "first"}, "000000000")])
def test_of_images_that_look_alike_the_largest_stays_unless_the_first_is_to_stay(
    tmp_path: Path, ray_cluster: None, keep: dict[str, str], kept: str
) -> None:
    """The sizes are those of the downloaded images: the stored ones are equally large."""
    shards: list[list[Any]] = [
        [sized(stored(noise(0)), 267, 213), sized(stored(noise(1)), 100, 100)],
        [sized(stored(noise(0), 70), 535, 426), sized(stored(noise(0), 60), 426, 535)],
    ]
    run, manifest = run_of(tmp_path, shards, near_duplicates=4, **keep)
    assert shard(manifest, run).dropped == {"near_duplicate": 2}
    assert keys(run) == sorted([kept, "000000001"])
    others = {"000000000", "000010000", "000010001"} - {kept}
    assert listed(run) == dict.fromkeys(others, ("sample", "near_duplicate", kept))
    assert verify(run) == []


def test_the_list_of_what_was_left_out_has_the_distance_to_the_other_image(tmp_path: Path, ray_cluster: None) -> None:
    first, again = stored(noise(0)), stored(Image.blend(noise(0), noise(9), 0.15))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(stored(noise(5)))
    images = [first, first, again, stored(noise(5), 50), stored(noise(6))]
    hashes = [perceptual_hash(image) or 0 for image in images]
    settings: dict[str, Any] = {"duplicates": True, "near_duplicates": 8, "evaluation_distance": 8}
    run, manifest = run_of(tmp_path / "run", [[*images]], evaluation_sets=[str(tmp_path / "set")], **settings)
    shard(manifest, run)
    (path,) = Path(run.quarantine("shard")).iterdir()
    distances = {row["key"]: row["distance"] for row in pq.read_table(path).to_pylist()}
    evaluation = perceptual_hash(stored(noise(5))) or 0
    assert distances == {
        "000000001": 0,
        "000000002": (hashes[0] ^ hashes[2]).bit_count(),
        "000000003": (hashes[3] ^ evaluation).bit_count(),
    }
    assert distances["000000002"] > 0


def test_new_images_rewrite_no_earlier_shard(tmp_path: Path, ray_cluster: None) -> None:
    run, manifest = run_of(tmp_path, [[stored(noise(0)), stored(noise(1))]], duplicates=True, near_duplicates=4)
    shard(manifest, run)
    before = dataset_index.read_index(run)["shards"]
    add(run, 1, [stored(noise(1), 70), stored(noise(2))])
    summary = shard(manifest, run)
    assert (summary.built, summary.skipped) == (1, 1)
    assert dataset_index.read_index(run)["shards"][:1] == before
    assert keys(run) == ["000000000", "000000001", "000010001"]


def test_no_image_is_left_out_because_of_an_image_that_a_filter_leaves_out(tmp_path: Path, ray_cluster: None) -> None:
    image = stored(noise(0))
    images = [(image, {"texts": ["thing"]}), (image, {"original_width": 20}), image, image]
    run, manifest = run_of(tmp_path, [images], duplicates=True, min_words=2, min_side=32)
    assert shard(manifest, run).dropped == {"too_few_words": 1, "image_too_small": 1, "duplicate": 1}
    assert keys(run) == ["000000002"]


@pytest.mark.parametrize("kind", ["folder", "tar", "list", "image"])
def test_images_of_evaluation_sets_are_left_out(tmp_path: Path, ray_cluster: None, kind: str) -> None:
    """By their bytes, even if they cannot be decoded, and by their hashes."""
    broken, known = b"not an image at all", noise(5)
    (tmp_path / "sets").mkdir()
    files = {"a.jpg": stored(known, 80)} | ({} if kind == "image" else {"b.png": broken, "readme.md": b"?"})
    for name, content in files.items():
        (tmp_path / "sets" / name).write_bytes(content)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "sets", "sets")
    (tmp_path / "set.txt").write_text("sets/a.jpg\n\nsets/b.png\n")
    path = {"folder": "sets", "tar": "set.tar", "list": "set.txt", "image": "sets/a.jpg"}[kind]
    images = [stored(noise(4)), stored(known, 95), broken]
    run, manifest = run_of(tmp_path / "run", [images], evaluation_sets=[str(tmp_path / path)])
    summary = shard(manifest, run)
    assert summary.failed == []
    assert summary.dropped == {"evaluation_image": 1 if kind == "image" else 2}
    assert keys(run) == (["000000000", "000000002"] if kind == "image" else ["000000000"])
    what, reason, name = listed(run)["000000001"]
    assert (what, reason, name.endswith("a.jpg")) == ("sample", "evaluation_image", True)


def test_an_evaluation_set_that_changes_is_read_again(tmp_path: Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    (folder := tmp_path / "set").mkdir()
    (folder / "a.jpg").write_bytes(stored(noise(0)))
    first = decontamination.evaluation_images(run, [str(folder)])
    assert decontamination.evaluation_images(run, [str(folder)]).id == first.id
    (folder / "b.jpg").write_bytes(stored(noise(1)))
    second = decontamination.evaluation_images(run, [str(folder)])
    assert (second.id != first.id, len(second.names)) == (True, 2)
    for name in ("nothing-here", "set.tar", "none.txt"):
        with pytest.raises(EvaluationSetError, match=name):
            decontamination.evaluation_images(run, [str(tmp_path / name)])


def test_a_shard_that_cannot_be_surveyed_is_reported_and_nothing_is_published(
    tmp_path: Path, ray_cluster: None
) -> None:
    run, manifest = run_of(tmp_path, [[stored(noise(0))], [stored(noise(1))]], near_duplicates=4)
    Path(run.images, "00001-attempt.tar").write_bytes(b"torn")
    summary = shard(manifest, run)
    assert summary.built == 0 and "shard 00001 could not be surveyed" in summary.failed[0]
    assert not storage.exists(run.dataset)


def test_filters_of_images_and_raw_texts() -> None:
    image = {"original_width": 300, "original_height": 100}
    assert filters.image_rejection(image, Filters()) is None
    assert filters.image_rejection(image, Filters(min_side=101)) == filters.TOO_SMALL
    assert filters.image_rejection(image, Filters(min_side=100, max_aspect=3.0)) is None
    assert filters.image_rejection(image, Filters(max_aspect=2.99)) == filters.TOO_LONG
    assert filters.text_rejection("", Filters()) is None
    assert filters.text_rejection(" \n", Filters(min_words=1)) == filters.FEW_WORDS
    assert filters.text_rejection("one two", Filters(min_words=2, max_words=2)) is None
    assert filters.text_rejection("one two three", Filters(max_words=2)) == filters.MANY_WORDS
    assert filters.text_rejection("Красная машина", Filters(language="english")) == filters.FOREIGN
    assert (
        filters.text_rejection("ein roter Wagen der vor dem alten Haus meiner Tante steht", Filters(language="english"))
        == filters.FOREIGN
    )
    assert filters.text_rejection("a red car in front of the old house of my aunt", Filters(language="english")) is None
    assert filters.text_rejection("café", Filters(language="english")) == filters.FOREIGN  # a quarter of its letters
    assert filters.text_rejection("red car", Filters(language="english")) is None


def test_a_sample_keeps_the_raw_texts_that_pass(tmp_path: Path, ray_cluster: None) -> None:
    texts = {"texts": ["thing", "a good long text", "word"], "sources": ["web", "coyo", "laion"]}
    run, manifest = run_of(tmp_path, [[(stored(noise(0)), texts)]], min_words=2)
    assert shard(manifest, run).failed == []
    index = dataset_index.read_index(run)
    columns = table(run, index["shards"][0])
    assert (columns["raw"], columns["source"]) == (["a good long text"], ["coyo"])
    assert (columns["raws"], columns["sources"]) == ([["a good long text"]], [["coyo"]])
    assert (index["dropped"], index["dropped_texts"]) == ({}, {"raw": {"too_few_words": 2}})
    (path,) = Path(run.quarantine("shard")).iterdir()
    rows = pq.read_table(path).to_pylist()
    assert Counter((row["what"], row["reason"], row["detail"]) for row in rows) == {
        ("raw", "too_few_words", "thing"): 1,
        ("raw", "too_few_words", "word"): 1,
    }
    assert verify(run) == []


def test_flagged_long_texts_are_left_out_and_counted(tmp_path: Path, ray_cluster: None) -> None:
    fake = fake_run.make(tmp_path, shards=1, writers=["llava"], clean={"drop_flags": ["repetition"]}, min_long_texts=0)
    captions = fake_run.captions_of(fake.run, "llava", 0)
    captions[0] |= {"flags": ["truncated", "repetition"]}
    captions[1] |= {"flags": ["truncated"]}
    fake_run.write_captions(fake.run, "llava", 0, captions)
    assert shard(fake.manifest, fake.run).failed == []
    index = dataset_index.read_index(fake.run)
    columns = table(fake.run, index["shards"][0])
    row = columns["key"].index(captions[0]["key"])
    assert (columns["llava"][row], columns["llava_sub"][row]) == (None, [])
    assert columns["llava_flags"][row] == "truncated repetition"
    assert (index["long_texts"], index["dropped_texts"]) == (
        {"llava": 7},
        {"llava": {"repetition": 1}},
    )
    assert listed(fake.run)[captions[0]["key"]] == ("llava", "repetition", captions[0]["text"])


def test_invalid_settings_are_rejected(tmp_path: Path) -> None:
    text = "name: x\nsources: [{name: web, files: a.csv}]\nclean: "
    for settings, message in (
        ("{near_duplicates: 9}", "`clean.near_duplicates`"),
        ("{min_words: 9, max_words: 3}", "above `max_words`"),
        ("{language: klingon}", "`clean.language`"),
        ("{keep: smallest}", "`clean.keep`"),
        ("{dedup: true}", "`clean.dedup`: there is no such setting"),
    ):
        with pytest.raises(ManifestError, match=message):
            parse(text + settings, "m.yaml")
    with pytest.raises(UserError, match=r"`clean\.drop_flags`: there is no flag repetiton; the flags are truncated"):
        Filters.of(parse(text + "{drop_flags: [repetiton]}", "m.yaml"))
    (tmp_path / "m.yaml").write_text(text + "{evaluation_sets: [coco, s3://bucket/iiw.tar]}")
    assert load(str(tmp_path / "m.yaml")).clean.evaluation_sets == (f"{tmp_path}/coco", "s3://bucket/iiw.tar")


def test_exclusions_are_found_once_for_the_same_images_and_settings(tmp_path: Path, ray_cluster: None) -> None:
    image = stored(noise(0))
    run, manifest = run_of(tmp_path, [[image, image]], duplicates=True)
    lists, failed = exclusions.find_exclusions(run, manifest.clean, Filters.of(manifest))
    assert (len(lists), failed) == (1, [])
    assert exclusions.read_list(run, lists[0]) == {1: ("duplicate", "000000000", 0)}
    (index,) = Path(run.clean()).glob("left-out-*.json")
    index.write_text(json.dumps({"0": "as it was"}))
    assert exclusions.find_exclusions(run, manifest.clean, Filters.of(manifest))[0] == {0: "as it was"}
