"""How many images a run will have, and of how many bytes, against examples worked out by hand."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.schema import SCHEMA_VERSION
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading.retry import Round
from lotlip_data.pipeline.planning import lists as plan_lists
from lotlip_data.pipeline.planning.storage import LOOKED_AT, Stored, images_of, storage_of, stored_by
from lotlip_data.pipeline.url_lists.partition import Partition


def planned(folder: Path, rows: int, shards: int, fetched: dict[int, tuple[int, int]]) -> Run:
    """A run of shards of 100 rows; of the fetched ones, rows and failures."""
    run = Run.at(str(folder))
    storage.create(run.plan, json.dumps(asdict(Partition(rows, shards, 100, rows, 0, {}, {}))).encode())
    for shard, (count, failed) in fetched.items():
        storage.create(run.image_stats(shard), b"{}")
        ledger.record(run.image_ledger, shard, ledger.WorkRecord(count, failed, tokens=0, started=0, ended=1))
    return run


def test_rows_that_are_left_give_images_as_those_before_them(tmp_path: Path) -> None:
    """1,278 rows in 13 shards; the 178 of shards 2 and 12, which is short, gave 89. Of the other 1,100, half: 639."""
    run = planned(tmp_path / "run", 1278, 13, {2: (100, 50), 12: (78, 39)})
    assert images_of(run) == (
        639,
        "1,100 rows are not fetched yet; 50.0% of them give an image, as of those that are",
    )


def test_rows_that_are_fetched_again_count_once_more(tmp_path: Path) -> None:
    """200 rows gave 150; a round of 50, in shard 2, is left, of which 75% are 37.5, so 38 in even rounding."""
    run = planned(tmp_path / "run", 200, 2, {0: (100, 25), 1: (100, 25)})
    again = Round(first=2, shards=1, rows=50, samples_per_shard=100, reasons=("timeout",), sources=(0, 1))
    storage.create(run.retry(1), json.dumps(asdict(again)).encode())
    found = images_of(run)
    assert found is not None and found[0] == 188 and found[1].startswith("50 rows are not fetched yet; 75.0%")


def test_nothing_is_assumed_of_a_run_that_is_fetched_and_every_link_is_alive_before(tmp_path: Path) -> None:
    assert images_of(Run.at(str(tmp_path / "not cut"))) is None
    assert images_of(planned(tmp_path / "whole", 150, 2, {0: (100, 10), 1: (50, 0)})) == (140, "")
    assert images_of(planned(tmp_path / "begun", 150, 2, {})) == (
        150,
        "150 rows are not fetched yet; 100.0% of them give an image, assumed: nothing is fetched",
    )


MANIFEST = Manifest.model_validate({"name": "x", "sources": [{"name": "a", "files": ["gone.csv"]}]})


def fetch(run: Run, shard: int, images: int, tar: int, parquet: int) -> None:
    """Commit a shard of 100 rows whose files have so many bytes."""
    names = {ending: f"{shard:05d}-attempt.{ending}" for ending in ("tar", "parquet")}
    for ending, size in (("tar", tar), ("parquet", parquet)):
        storage.create(storage.join(run.images, names[ending]), bytes(size))
    stats = {"count": 100, "successes": images, "status_dict": {}, **names}
    storage.create(run.image_stats(shard), json.dumps(stats).encode())
    ledger.record(run.image_ledger, shard, ledger.WorkRecord(100, 100 - images, tokens=0, started=0, ended=1))


def describe(run: Run, **figures: int) -> None:
    maps = ("captioners", "rules", "splits", "long_texts", "dropped", "dropped_texts", "manifest")
    lists = ("columns", "shards", "validation", "inputs", "replaced")
    content = {name: {} for name in maps} | {name: [] for name in lists} | figures
    storage.create(run.dataset, json.dumps({"schema_version": SCHEMA_VERSION} | content).encode())


def test_images_and_dataset_take_what_those_of_the_run_do(tmp_path: Path) -> None:
    """3,000 + 200 and 5,000 + 300 bytes of 50 + 35 images are 100 bytes each; 17,000 of the dataset of 85 are 200.

    A third shard of 100 rows will have 42.5 images, so 42 in even rounding: 127 in all.
    """
    run = planned(tmp_path / "run", 300, 3, {})
    fetch(run, 0, 50, 3000, 200)
    fetch(run, 1, 35, 5000, 300)
    assert stored_by(run) == Stored(images=127, image=100.0, looked_at=2, dataset=None)
    assert storage_of(MANIFEST, 300, stored_by(run)) == {
        "images": 12_700,
        "dataset": 127 * 4100,
        "assumes": "each of 127 images takes 100 bytes, as in 2 fetched shards of the run, and 4,000 bytes of texts: "
        "assumed; the dataset holds the images once more",
    }
    describe(run, fetched=85, samples=80, bytes=17_000)
    found = storage_of(MANIFEST, 300, stored_by(run))
    assert (found["images"], found["dataset"]) == (12_700, 25_400)
    assert found["assumes"].endswith("and 200 bytes of the dataset, as in the one that the run has")
    plan = plan_lists.plan_lists(MANIFEST, stored=stored_by(run))  # although its list is gone
    assert "storage      images 13 kB, dataset 25 kB (estimate)" in plan_lists.format_text(plan)


def test_of_a_run_without_an_image_the_bytes_are_assumed(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", 300, 3, {})
    assert stored_by(run) is None and stored_by(Run.at(str(tmp_path / "not cut"))) is None
    fetch(run, 0, 0, 100, 100)
    assert stored_by(run) is None
    found = storage_of(MANIFEST, 10, None)
    assert found["images"] == 1_048_580 and "assumed, not measured" in found["assumes"]


def test_the_sizes_of_a_few_shards_are_asked_for_and_missing_files_count_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other shard has images of 100 bytes, the others of 300; the tar of the first one is gone."""
    run = planned(tmp_path / "run", 10_000, 100, {})
    for shard in range(100):
        fetch(run, shard, 10, 900 + 2000 * (shard // 50), 100)
    storage.remove(storage.join(run.images, "00000-attempt.tar"))
    asked, size = list[str](), storage.size
    monkeypatch.setattr(storage, "size", lambda url: (asked.append(url), size(url))[1])
    found = stored_by(run)
    assert found is not None and (found.images, found.looked_at) == (1000, LOOKED_AT - 1)
    assert found.image == pytest.approx((9 * 100 + 10 * 300) / 19)
    assert len(asked) == 2 * LOOKED_AT
