"""The pictures of the report: a bounded number of small copies, whatever the run holds."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.reporting.pictures import (
    LONG_CHARACTERS,
    PICTURE_BYTES,
    PICTURES,
    SIDE_PIXELS,
    make_thumbnail,
    pick_pictures,
)
from tests.pipeline import run_fixture
from tests.pipeline.viewer import dataset_fixture


def noise(width: int, height: int) -> bytes:
    """A JPEG that compresses badly."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return dataset_fixture.jpeg(Image.fromarray(pixels))


@pytest.mark.parametrize("size", [(1, 1), (2000, 30), (900, 900)])
def test_a_thumbnail_is_small_and_has_the_shape_of_the_image(size: tuple[int, int]) -> None:
    url, width, height = make_thumbnail(noise(*size))
    content = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "JPEG" and image.size == (width, height)
    assert max(width, height) == min(SIDE_PIXELS, max(size)) and len(content) <= PICTURE_BYTES
    assert width / height == pytest.approx(size[0] / size[1], rel=0.6)


def test_what_is_not_an_image_is_an_error() -> None:
    for content in (b"", b"<html>", noise(50, 50)[:300]):
        with pytest.raises(ValueError, match="cannot be decoded"):
            make_thumbnail(content)


@pytest.mark.parametrize(("shards", "samples"), [(1, 40), (3, 10), (5, 2), (40, 1)])
def test_pictures_are_of_different_samples_spread_over_the_shards(tmp_path: Path, shards: int, samples: int) -> None:
    run = dataset_fixture.make(tmp_path / "run", shards=shards, samples=samples)
    pictures, problems = pick_pictures(run)
    assert problems == []
    numbers = [int(picture.uid, 16) for picture in pictures]
    assert len(set(numbers)) == len(numbers) == min(PICTURES, shards * samples)
    assert len({number // samples for number in numbers}) == min(PICTURES, shards)
    for number, picture in zip(numbers, pictures, strict=True):
        row = dataset_fixture.row_of(number)
        assert picture.raw == row["raw"] and picture.long == row[picture.captioner]
    assert {picture.captioner for picture in pictures} == set(dataset_fixture.CAPTIONERS)


def test_long_texts_are_cut_and_a_captioner_without_a_text_is_passed_over(tmp_path: Path) -> None:
    def change(number: int, row: dataset_fixture.Row) -> None:
        row |= {"llava": None, "llava_sub": None, "sharegpt4v": "word " * 1000, "sharegpt4v_sub": None}

    pictures, _ = pick_pictures(dataset_fixture.make(tmp_path / "run", shards=1, samples=4, change=change))
    assert {picture.captioner for picture in pictures} == {"sharegpt4v"}
    assert all(len(picture.long) <= LONG_CHARACTERS and picture.long.endswith("…") for picture in pictures)


def test_damaged_files_cost_their_own_pictures_and_are_named_once(tmp_path: Path) -> None:
    def change(number: int, row: dataset_fixture.Row) -> None:
        if number == 21:
            row["image"] = b"\xff\xd8\xff no picture"

    run = dataset_fixture.make(tmp_path / "run", shards=4, samples=10, change=change)
    Path(run.shards, "train-00000.tar").write_bytes(b"torn")
    Path(run.shards, "train-00001.parquet").unlink()
    pictures, problems = pick_pictures(run)
    assert {int(picture.uid, 16) // 10 for picture in pictures} >= {3}
    assert [name in problem for name, problem in zip(("00000.tar", "00001.parquet"), problems, strict=False)] == [
        True
    ] * 2
    assert len(problems) <= 3 and all(": " in problem for problem in problems)


def test_without_a_dataset_the_pictures_are_downloaded_images(tmp_path: Path) -> None:
    made = run_fixture.make(tmp_path / "run", shards=2, images=4, writers=[])
    rows = {row["uid"]: row for shard in range(2) for row in run_fixture.fetched_rows(made.run, shard)}
    pictures, problems = pick_pictures(made.run)
    assert problems == [] and {picture.uid for picture in pictures} == set(rows)
    assert all(picture.raw == rows[picture.uid]["texts"][0] and picture.long == "" for picture in pictures)
    Path(made.run.images, "00000-attempt.tar").write_bytes(b"torn")
    pictures, problems = pick_pictures(made.run)
    assert len(pictures) == 4 and len(problems) == 1 and "00000-attempt.tar" in problems[0]


def test_a_run_that_has_just_started_has_no_pictures(tmp_path: Path) -> None:
    assert pick_pictures(Run.at(str(tmp_path / "run"))) == ([], [])
