"""How far a run is comes from the names in its folder alone: counts, rates, what is left."""

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
from lotlip_data.pipeline.recaptioning.results import complete
from lotlip_data.pipeline.reporting.status import format_text, rates, status
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.recaptioning.grey_engine import Seer, caption, fetched

NUMBER = st.integers(min_value=0, max_value=10**12)


@given(st.builds(WorkRecord, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER))
def test_a_tally_survives_its_name(tally: WorkRecord) -> None:
    assert WorkRecord.named(f"00017-{tally.name}.parquet") == tally


def test_rates_are_over_the_last_minutes_and_spread_over_the_time_of_each_piece_of_work() -> None:
    half_in = WorkRecord(rows=100, failed=0, tokens=1000, started=0, ended=100)
    within = WorkRecord(rows=50, failed=0, tokens=300, started=100, ended=150)
    long_ago = WorkRecord(rows=10**6, failed=0, tokens=10**6, started=0, ended=49)
    assert rates([half_in, within, long_ago], now=150, window=100) == (100 / 100, 800 / 100)
    assert rates([within], now=150, window=1000) == (50 / 50, 300 / 50)  # since the first work, not since ever
    assert rates([within], now=1151, window=1000) == (0, 0)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two fetched shards of 30 and 20 images; the captioner `seer` has done the first, and 12 of the second."""
    run = Run.at(str(tmp_path / "a run"))
    for shard, values in ((0, range(30)), (1, range(30, 50))):
        fetched(run, shard, list(values))
        ledger.record(run.image_ledger, shard, WorkRecord(len(values) + 1, 1, 0, 0, 10))
    caption(run, Seer(poison=(3,)), 0)
    now = int(time.time())
    folder = run.caption_parts("seer", 1)
    storage.create(storage.join(folder, f"00000-x-{WorkRecord(12, 1, 60, now - 4, now).name}.parquet"), b"")
    return run


def test_parts_under_way_count(run: Run) -> None:
    found = status(run)
    assert found["images"] == 50
    assert found["captioned"] == {"seer": 1}
    seer = found["captioners"]["seer"]
    assert (seer["done"], seer["left"], seer["failed"], seer["tokens"]) == (42, 8, 2, 29 * 5 + 60)
    assert seer["images_per_s"] > 0 and seer["seconds_left"] == pytest.approx(8 / seer["images_per_s"], abs=1)
    (line,) = [line for line in format_text(found) if "seer" in line]
    assert "1 of 2 shards, 40 images captioned, 2 failed, 8 left; " in line and "tokens/s" in line and "to go" in line


def test_captions_that_are_removed_are_left_to_do_and_count_once_when_they_are_there_again(run: Run) -> None:
    """Whatever the first ones took, of which one more had failed."""
    storage.remove(run.caption_parts("seer", 1))
    caption(run, Seer(), 1)
    ledger.record(run.caption_ledger("seer"), 0, WorkRecord(30, 1, 0, 0, 10, spent=10**9))
    storage.remove(run.caption_shard("seer", 0))
    one = status(run)["captioners"]["seer"]
    assert (one["done"], one["left"], one["failed"]) == (20, 30, 0)
    work = ledger.caption_progress(run, "seer")
    assert (work.left, work.done) == ((0,), (1,))
    storage.create(listed := run.quarantine("captions", "seer", "00000.parquet"), b"of the captions of before")
    complete(run, "seer", work.done)
    caption(run, Seer(), 0)
    assert not storage.exists(listed)
    one = status(run)["captioners"]["seer"]
    assert (one["done"], one["left"], one["failed"]) == (50, 0, 0)


def test_a_shard_that_is_to_be_fetched_again_hides_no_captions_that_are_left(run: Run) -> None:
    """Of two shards that were captioned, one lacks its images, the other its captions."""
    storage.remove(run.caption_parts("seer", 1))
    caption(run, Seer(), 1)
    of_both = status(run)["captioners"]["seer"]
    storage.remove(run.image_stats(0))
    storage.remove(run.caption_shard("seer", 1))
    one = status(run)["captioners"]["seer"]
    assert of_both["left"] == 0 and (one["done"], one["left"]) == (0, status(run)["images"]) and one["left"] > 0


def test_of_two_fetches_of_a_shard_the_latter_counts(run: Run) -> None:
    ledger.record(run.image_ledger, 0, WorkRecord(31, 11, 0, 20, 30))
    assert status(run)["images"] == 40


def test_captions_of_a_shard_that_is_to_be_fetched_again_are_none_of_the_fetched_shards(run: Run) -> None:
    storage.remove(run.image_stats(0))
    assert status(run)["captioned"] == {"seer": 0}


def test_a_run_that_rests_says_no_rate(run: Run) -> None:
    seer = status(run, now=time.time() + 3600)["captioners"]["seer"]
    assert (seer["images_per_s"], seer["seconds_left"]) == (0, None)


def test_shards_without_a_line_in_the_ledger_are_counted_too(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path / "run", 2, 4, writers=()).run
    assert status(run)["images"] == 8


def test_watching_goes_on_until_it_is_stopped(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path / "run", 1, 4, writers=()).run
    command = [sys.executable, "-m", "lotlip_data.pipeline.cli", "status", run.url, "--watch", "--every", "0.1"]
    watching = subprocess.Popen(
        [*command, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )
    assert watching.stdout and watching.stderr
    looks = [line for _ in range(4) if (line := watching.stderr.readline())]
    watching.send_signal(signal.SIGINT)
    out, _ = watching.communicate(timeout=120)
    assert watching.returncode == 130
    assert len(looks) == 4 and out.count('"images": 4') > 1
    assert json.JSONDecoder().raw_decode(out)[0]["fetched"] == 1
