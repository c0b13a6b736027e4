"""Estimates of the images of a run and of their bytes equal examples worked out by hand."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.schema import SCHEMA_VERSION
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading.retry import Round
from lotlip_data.pipeline.planning.lists import plan_lists
from lotlip_data.pipeline.planning.lists_text import format_text
from lotlip_data.pipeline.planning.storage import (
    SAMPLED_SHARDS,
    MeasuredStorage,
    estimate_images,
    estimate_storage,
    measure_storage,
)
from lotlip_data.pipeline.url_lists.partition import Partition


def partitioned_run(folder: Path, rows: int, shards: int, fetched: dict[int, tuple[int, int]]) -> Run:
    """Return a run with shards of 100 rows.

    Args:
        folder: The folder of the run.
        rows: Number of rows.
        shards: Number of shards.
        fetched: Rows and failures of each downloaded shard.
    """
    run = Run.at(str(folder))
    storage.create(run.plan, json.dumps(asdict(Partition(rows, shards, 100, rows, 0, {}, {}))).encode())
    for shard, (count, failed) in fetched.items():
        storage.create(run.image_stats(shard), b"{}")
        ledger.record(run.image_ledger, shard, ledger.WorkRecord(count, failed, tokens=0, started=0, ended=1))
    return run


def test_remaining_rows_return_images_at_the_same_share_as_downloaded_rows(tmp_path: Path) -> None:
    """1,278 rows in 13 shards. The 178 rows of shards 2 and 12 (the short one) gave 89 images.

    Half of the other 1,100 rows are 550 images, so 639 in all.
    """
    run = partitioned_run(tmp_path / "run", 1278, 13, {2: (100, 50), 12: (78, 39)})
    assert estimate_images(run) == (
        639,
        "1,100 rows are not downloaded yet; 50.0% of them return an image (the same share as so far)",
    )


def test_rows_of_a_retry_round_count_again(tmp_path: Path) -> None:
    """200 rows gave 150 images. A retry round of 50 rows (shard 2) remains; 75% of 50 is 37.5, rounded to even 38."""
    run = partitioned_run(tmp_path / "run", 200, 2, {0: (100, 25), 1: (100, 25)})
    retry_round = Round(first=2, shards=1, rows=50, samples_per_shard=100, reasons=("timeout",), sources=(0, 1))
    storage.create(run.retry(1), json.dumps(asdict(retry_round)).encode())
    estimate = estimate_images(run)
    assert estimate is not None and estimate[0] == 188
    assert estimate[1].startswith("50 rows are not downloaded yet; 75.0%")


def test_a_complete_download_assumes_nothing_and_a_new_run_assumes_that_every_url_works(tmp_path: Path) -> None:
    assert estimate_images(Run.at(str(tmp_path / "not partitioned"))) is None
    assert estimate_images(partitioned_run(tmp_path / "whole", 150, 2, {0: (100, 10), 1: (50, 0)})) == (140, "")
    assert estimate_images(partitioned_run(tmp_path / "begun", 150, 2, {})) == (
        150,
        "150 rows are not downloaded yet; 100.0% of them return an image (assumed, because nothing is downloaded yet)",
    )


MANIFEST = Manifest.model_validate({"name": "x", "sources": [{"name": "a", "files": ["gone.csv"]}]})


def commit_download(run: Run, shard: int, images: int, tar: int, parquet: int) -> None:
    """Commit a shard of 100 rows with `images` images, whose files have `tar` and `parquet` bytes."""
    names = {ending: f"{shard:05d}-attempt.{ending}" for ending in ("tar", "parquet")}
    for ending, size in (("tar", tar), ("parquet", parquet)):
        storage.create(storage.join(run.images, names[ending]), bytes(size))
    stats = {"count": 100, "successes": images, "status_dict": {}, **names}
    storage.create(run.image_stats(shard), json.dumps(stats).encode())
    ledger.record(run.image_ledger, shard, ledger.WorkRecord(100, 100 - images, tokens=0, started=0, ended=1))


def write_dataset_json(run: Run, **counts: int) -> None:
    maps = ("captioners", "splits", "long_texts", "dropped", "dropped_texts")
    lists = ("columns", "shards", "validation", "inputs", "replaced")
    content = {name: {} for name in maps} | {name: [] for name in lists} | counts
    content |= {"name": "fake", "sub_captions": "punkt", "rules": {"validation": 0.0}}
    content |= {"manifest": {"sources": [], "shard": {}, "clean": {}}}
    storage.create(run.dataset, json.dumps({"schema_version": SCHEMA_VERSION} | content).encode())


def test_storage_is_extrapolated_from_the_run(tmp_path: Path) -> None:
    """3,200 + 5,300 bytes of 50 + 35 images are 100 bytes each; 17,000 bytes of a dataset of 85 images are 200 each.

    A third shard of 100 rows will have 42.5 images, rounded to even 42, so 127 in all.
    """
    run = partitioned_run(tmp_path / "run", 300, 3, {})
    commit_download(run, 0, 50, 3000, 200)
    commit_download(run, 1, 35, 5000, 300)
    assert measure_storage(run) == MeasuredStorage(images=127, image_bytes=100.0, sampled_shards=2, dataset_bytes=None)
    assert estimate_storage(MANIFEST, 300, measure_storage(run)) == {
        "images": 12_700,
        "dataset": 127 * 4100,
        "assumes": "each of 127 images takes 100 bytes, as in 2 downloaded shards of the run, and 4,000 bytes of texts "
        "(assumed); the dataset holds a second copy of the images",
    }
    write_dataset_json(run, fetched=85, samples=80, bytes=17_000)
    estimate = estimate_storage(MANIFEST, 300, measure_storage(run))
    assert (estimate["images"], estimate["dataset"]) == (12_700, 25_400)
    assert estimate["assumes"].endswith("and 200 bytes in the dataset, as in the run's existing dataset")
    plan = plan_lists(MANIFEST, measured=measure_storage(run))  # its list does not exist
    assert "storage      images 13 kB, dataset 25 kB (estimate)" in format_text(plan)


def test_without_images_the_bytes_are_assumed(tmp_path: Path) -> None:
    run = partitioned_run(tmp_path / "run", 300, 3, {})
    assert measure_storage(run) is None and measure_storage(Run.at(str(tmp_path / "not partitioned"))) is None
    commit_download(run, 0, 0, 100, 100)
    assert measure_storage(run) is None
    estimate = estimate_storage(MANIFEST, 10, None)
    assert estimate["images"] == 1_048_580 and "are not measured" in estimate["assumes"]


def test_a_few_shards_are_sampled_and_shards_with_missing_files_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images take 100 bytes in the first 50 shards and 300 in the others; the tar of the first shard is missing."""
    run = partitioned_run(tmp_path / "run", 10_000, 100, {})
    for shard in range(100):
        commit_download(run, shard, 10, 900 + 2000 * (shard // 50), 100)
    storage.remove(storage.join(run.images, "00000-attempt.tar"))
    requested, size = list[str](), storage.size
    monkeypatch.setattr(storage, "size", lambda url: (requested.append(url), size(url))[1])
    measured = measure_storage(run)
    assert measured is not None and (measured.images, measured.sampled_shards) == (1000, SAMPLED_SHARDS - 1)
    assert measured.image_bytes == pytest.approx((9 * 100 + 10 * 300) / 19)
    assert len(requested) == 2 * SAMPLED_SHARDS
