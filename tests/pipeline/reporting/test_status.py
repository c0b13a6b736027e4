"""The status of a run comes from the object names in its folder alone: counts, rates, remaining work."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.recaptioning.results import finish_pending_commits
from lotlip_data.pipeline.reporting.status import format_text, get_status, rates
from tests.pipeline import run_fixture
from tests.pipeline.recaptioning.grey_engine import GreyEngine, caption, write_shard

NUMBER = st.integers(min_value=0, max_value=10**12)


@given(st.builds(WorkRecord, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER))
def test_a_work_record_round_trips_through_its_name(record: WorkRecord) -> None:
    assert WorkRecord.named(f"00017-{record.name}.parquet") == record


def test_rates_cover_the_window_and_spread_each_record_over_its_duration() -> None:
    half_inside = WorkRecord(rows=100, failed=0, tokens=1000, started=0, ended=100)
    inside = WorkRecord(rows=50, failed=0, tokens=300, started=100, ended=150)
    long_ago = WorkRecord(rows=10**6, failed=0, tokens=10**6, started=0, ended=49)
    assert rates([half_inside, inside, long_ago], now=150, window=100) == (100 / 100, 800 / 100)
    assert rates([inside], now=150, window=1000) == (50 / 50, 300 / 50)  # since the first work in the window
    assert rates([inside], now=1151, window=1000) == (0, 0)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two downloaded shards of 30 and 20 images; captioner `grey` has finished the first and 12 of the second."""
    run = Run.at(str(tmp_path / "a run"))
    for shard, values in ((0, range(30)), (1, range(30, 50))):
        write_shard(run, shard, list(values))
        ledger.record(run.image_ledger, shard, WorkRecord(len(values) + 1, 1, 0, 0, 10))
    caption(run, GreyEngine(poison=(3,)), 0)
    now = int(time.time())
    folder = run.caption_parts("grey", 1)
    storage.create(storage.join(folder, f"00000-x-{WorkRecord(12, 1, 60, now - 4, now).name}.parquet"), b"")
    return run


def test_partial_results_count(run: Run) -> None:
    progress = get_status(run)
    assert progress["images"] == 50
    assert progress["captioned"] == {"grey": 1}
    grey = progress["captioners"]["grey"]
    assert (grey["done"], grey["left"], grey["failed"], grey["tokens"]) == (42, 8, 2, 29 * 5 + 60)
    assert grey["images_per_s"] > 0 and grey["seconds_left"] == pytest.approx(8 / grey["images_per_s"], abs=1)
    (line,) = [line for line in format_text(progress) if "grey" in line]
    assert "1 of 2 shards, 40 images captioned, 2 failed, 8 remaining; " in line
    assert "tokens/s" in line and "ETA 0:0" in line


def test_removed_captions_count_as_remaining_and_count_once_after_they_are_rewritten(run: Run) -> None:
    """The record of the removed captions, with one more failure, does not count."""
    storage.remove(run.caption_parts("grey", 1))
    caption(run, GreyEngine(), 1)
    ledger.record(run.caption_ledger("grey"), 0, WorkRecord(30, 1, 0, 0, 10, spent=10**9))
    storage.remove(run.caption_shard("grey", 0))
    grey = get_status(run)["captioners"]["grey"]
    assert (grey["done"], grey["left"], grey["failed"]) == (20, 30, 0)
    progress = ledger.caption_progress(run, "grey")
    assert (progress.left, progress.done) == ((0,), (1,))
    storage.create(quarantined := run.quarantine("captions", "grey", "00000.parquet"), b"of the removed captions")
    finish_pending_commits(run, "grey", progress.done)
    caption(run, GreyEngine(), 0)
    assert not storage.exists(quarantined)
    grey = get_status(run)["captioners"]["grey"]
    assert (grey["done"], grey["left"], grey["failed"]) == (50, 0, 0)


def test_a_shard_to_download_again_does_not_hide_remaining_captions(run: Run) -> None:
    """Two shards were captioned; one has to be downloaded again, the other lost its captions."""
    storage.remove(run.caption_parts("grey", 1))
    caption(run, GreyEngine(), 1)
    before = get_status(run)["captioners"]["grey"]
    storage.remove(run.image_stats(0))
    storage.remove(run.caption_shard("grey", 1))
    grey = get_status(run)["captioners"]["grey"]
    assert before["left"] == 0 and (grey["done"], grey["left"]) == (0, get_status(run)["images"]) and grey["left"] > 0


def test_the_last_of_two_downloads_of_a_shard_counts(run: Run) -> None:
    ledger.record(run.image_ledger, 0, WorkRecord(31, 11, 0, 20, 30))
    assert get_status(run)["images"] == 40


def test_captions_of_a_shard_that_is_not_downloaded_do_not_count(run: Run) -> None:
    storage.remove(run.image_stats(0))
    assert get_status(run)["captioned"] == {"grey": 0}


def test_an_idle_run_has_no_rate(run: Run) -> None:
    grey = get_status(run, now=time.time() + 3600)["captioners"]["grey"]
    assert (grey["images_per_s"], grey["seconds_left"]) == (0, None)


def test_shards_without_a_ledger_entry_count(tmp_path: Path) -> None:
    run = run_fixture.make(tmp_path / "run", 2, 4, writers=()).run
    assert get_status(run)["images"] == 8


def test_watching_continues_until_interrupted(tmp_path: Path) -> None:
    run = run_fixture.make(tmp_path / "run", 1, 4, writers=()).run
    command = [sys.executable, "-m", "lotlip_data.pipeline.cli", "status", run.url, "--watch", "--every", "0.1"]
    watching = subprocess.Popen(
        [*command, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore SIGINT
    )
    assert watching.stdout and watching.stderr
    lines = [line for _ in range(4) if (line := watching.stderr.readline())]
    watching.send_signal(signal.SIGINT)
    out, _ = watching.communicate(timeout=120)
    assert watching.returncode == 130
    assert len(lines) == 4 and out.count('"images": 4') > 1
    assert json.JSONDecoder().raw_decode(out)[0]["fetched"] == 1
