"""How many images a run will have, against examples worked out by hand."""

import json
from dataclasses import asdict
from pathlib import Path

from lotlip_data.manifests import storage
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import ledger
from lotlip_data.pipeline.partition import Plan
from lotlip_data.pipeline.plan_images import images_of
from lotlip_data.pipeline.retry import Round


def planned(folder: Path, rows: int, shards: int, fetched: dict[int, tuple[int, int]]) -> Run:
    """A run of shards of 100 rows; of the fetched ones, rows and failures."""
    run = Run.at(str(folder))
    storage.create(run.plan, json.dumps(asdict(Plan(rows, shards, 100, rows, 0, {}, {}))).encode())
    for shard, (count, failed) in fetched.items():
        storage.create(run.image_stats(shard), b"{}")
        ledger.record(run.image_ledger, shard, ledger.Tally(count, failed, tokens=0, started=0, ended=1))
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
