"""The status of a run comes from the object names in its folder alone: counts, rates, remaining work."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import inspection
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.core.outcome import Inspection
from lotlip_data.pipeline.recaptioning.results import finish_pending_commits
from lotlip_data.pipeline.reporting import training_status
from lotlip_data.pipeline.reporting.status import get_status, rates
from lotlip_data.pipeline.reporting.status_table import format_table
from lotlip_data.pipeline.url_lists.partition import Partition
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


def test_a_pause_between_two_calls_does_not_lower_the_rate() -> None:
    """100 images in 100 s, a pause of 300 s, then again: one image per second, not 0.4."""
    first, second = (WorkRecord(rows=100, failed=0, tokens=500, started=start, ended=start + 100) for start in (0, 400))
    assert rates([first, second], now=500) == rates([second, first], now=500) == (1, 5)
    assert rates([first], now=350) == (1, 5)  # stopped: the speed that it had
    side_by_side = WorkRecord(rows=100, failed=0, tokens=0, started=400, ended=500)
    assert rates([second, side_by_side], now=500)[0] == 2
    assert rates([second], now=550)[0] == 100 / 150  # the next result may not be due yet


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
    lines = format_table(progress)
    (row,) = [number for number, line in enumerate(lines) if "grey" in line]
    assert lines[row].split() == ["recaption", "grey", "42", "of", "50", "images", "2", "running"]
    assert re.fullmatch(r" +[\d.]+ images/s, [\d.]+ tokens/s, \d+ s left", lines[row + 1])


def test_a_captioner_that_was_given_up_is_stopped_with_the_reason_until_it_goes_on(run: Run) -> None:
    reason = "captioner 'grey': the engine did not start: no GPU"
    for name in ("grey_long", "grey_tags"):
        storage.create(run.captioner_settings(name), b"{}")
        ledger.record_stop(run.captioner_stopped(name), reason)
    status = get_status(run)
    status["texts"] = {"grey": ["grey_long", "grey_tags"]}
    lines = format_table(status)
    assert [line.split()[-1] for line in lines if "grey" in line and "of 50" in line] == ["running", *["stopped"] * 3]
    assert lines[-2:] == ["stopped:", f"  recaption grey_long, grey_tags: {reason}"]
    ledger.record_stop(run.captioner_stopped("grey"), reason)
    assert get_status(run)["captioners"]["grey"]["stopped"] == reason
    now = int(time.time()) + 5
    storage.create(storage.join(run.caption_parts("grey", 1), f"1-x-{WorkRecord(1, 0, 1, now, now).name}.parquet"), b"")
    assert get_status(run)["captioners"]["grey"]["stopped"] is None  # another driver goes on
    storage.replace(run.captioner_stopped("grey_long"), b"damaged")
    assert get_status(run)["captioners"]["grey_long"]["stopped"] is None


def test_a_stage_that_ended_early_is_stopped_with_the_reason_until_a_call_goes_on(run: Run) -> None:
    now = int(time.time())
    partition = Partition(images=82, shards=3, samples_per_shard=31, rows=82, duplicates=0, invalid={}, sources={})
    storage.create(run.plan, json.dumps(asdict(partition)).encode())
    ledger.record(run.image_ledger, 0, WorkRecord(31, 1, 0, now - 10, now))
    storage.create(run.shard_marker(f"00000-{'0' * 12}.json"), b"")

    def states(at: float) -> list[str]:
        lines = format_table(get_status(run, at))
        return [line.split()[-1] for line in lines if line.startswith(("download ", "dataset "))]

    assert states(now) == ["running", "running"]
    with pytest.raises(KeyboardInterrupt), ledger.recording_stop(run.stopped("shard")):
        raise KeyboardInterrupt
    with ledger.recording_stop(run.stopped("download")):
        pass
    assert states(now) == ["running", "stopped"]
    ledger.record_stop(run.stopped("download"), "shard 00002: t.tar: cannot be read")
    assert states(now) == ["stopped", "stopped"]
    assert format_table(get_status(run))[-3:] == [
        "stopped:", "  download: shard 00002: t.tar: cannot be read", "  dataset: interrupted"
    ]  # fmt: skip
    ledger.record(run.image_ledger, 1, WorkRecord(21, 1, 0, now, now + 5))
    os.utime(run.shard_markers + f"/00000-{'0' * 12}.json", (now + 5, now + 5))
    assert states(now + 5) == ["running", "running"]  # another driver goes on
    with pytest.raises(OSError, match="full"), ledger.recording_stop(run.stopped("download")):
        assert not storage.exists(run.stopped("download"))
        raise OSError("the disk is full")
    assert ledger.stop_of(run.stopped("download")) == "OSError: the disk is full"


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
    lines = list[str]()
    while sum(line.startswith("next: ") for line in lines) < 2 and (line := watching.stderr.readline()):
        lines.append(line)
    watching.send_signal(signal.SIGINT)
    out, _ = watching.communicate(timeout=120)
    assert watching.returncode == 130
    assert out.count('"images": 4') > 1
    assert json.JSONDecoder().raw_decode(out)[0]["fetched"] == 1


def test_failed_downloads_are_counted_without_an_option_and_retried_ones_are_not(run: Run) -> None:
    partition = Partition(images=52, shards=2, samples_per_shard=31, rows=52, duplicates=0, invalid={}, sources={})
    storage.create(run.plan, json.dumps(asdict(partition)).encode())
    download = get_status(run)["download"]
    assert download and (download["urls"], download["tried"], download["failed"], download["left"]) == (52, 52, 2, 0)
    retry_round = {"first": 2, "shards": 1, "rows": 1, "samples_per_shard": 31, "reasons": ["timeout"], "sources": [0]}
    storage.create(run.retry(1), json.dumps(retry_round).encode())
    download = get_status(run)["download"]
    assert download and (download["urls"], download["tried"], download["failed"], download["left"]) == (53, 52, 1, 1)


def write_training(run: Run, steps: int, batch: int = 4) -> None:
    """An unfinished training with the metrics of `steps` steps, of 8 samples per second each."""
    settings = {"epochs": 2, "batch": batch}
    storage.create(storage.join(run.train("lotlip"), "config.json"), json.dumps(settings).encode())
    lines = [{"step": step, "loss": 3.5, "samples_per_second": 8.0} for step in range(1, steps + 1)]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    storage.create(storage.join(run.train("lotlip"), "metrics.jsonl"), content)


def test_a_training_has_its_step_and_the_time_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 samples, 2 epochs, batches of 4: 200 steps, at 2 steps per second. Only the end of the metrics is read."""
    summary = {"splits": {"train": {"samples": 400}}}
    monkeypatch.setattr(training_status, "read_dataset_summary", lambda run: summary)
    write_training(run, steps=150)
    monkeypatch.setattr(training_status, "_TAIL_BYTES", 1000)
    assert get_status(run)["trainings"] == {
        "lotlip": {"step": 150, "steps": 200, "loss": 3.5, "steps_per_s": 2.0, "seconds_left": 25}
    }
    lines = format_table(get_status(run))
    (row,) = [number for number, line in enumerate(lines) if line.startswith("train")]
    assert lines[row].split() == ["train", "lotlip", "step", "150", "of", "200", "running"]
    assert lines[row + 1].strip() == "loss 3.500, 2 steps/s, 25 s left"
    an_hour_later = get_status(run, now=time.time() + 3600)
    assert an_hour_later["trainings"]["lotlip"]["seconds_left"] is None
    assert any(line.startswith("train") and line.endswith("stopped") for line in format_table(an_hour_later))


def test_a_training_without_metrics_or_with_a_damaged_file_is_listed(run: Run) -> None:
    storage.create(storage.join(run.train("lit"), "config.json"), b"{")
    storage.create(storage.join(run.train("lit"), "metrics.jsonl"), b'{"step": 1}\nnonsense\n[2]\n')
    assert get_status(run)["trainings"]["lit"] == {
        "step": 1, "steps": None, "loss": None, "steps_per_s": None, "seconds_left": None
    }  # fmt: skip


def test_no_line_of_the_table_is_longer_than_80_columns(run: Run) -> None:
    status = get_status(run)
    captioner = status["captioners"]["grey"] | {"done": 99_999_990, "left": 10_000_000, "failed": 123_456}
    status["captioners"] = {"grey": captioner, "a-captioner-with-a-rather-long-name": captioner}
    status["download"] = {"urls": 120_000_000, "tried": 99_999_999, "failed": 20_000_000, "left": 20_000_001} | {
        "estimated": False, "unit": "URL", "images_per_s": 12_345.6, "seconds_left": 1_000_000, "stopped": None
    }  # fmt: skip
    status["shards"] = 12_000
    assert max(map(len, format_table(status))) <= 80
    status["download"] |= {"estimated": True, "unit": "image"}
    assert max(map(len, format_table(status))) <= 80


def test_rows_of_tars_that_are_not_scanned_are_estimated_by_those_that_are(run: Run) -> None:
    """Three tars, and a table of 10 rows. A list has URLs; images that exist have none."""
    counts = {"images": 310, "shards": 4, "samples_per_shard": 100, "rows": 0, "duplicates": 0}
    tars = {"container_rows": [100, 100, 100, 10], "uncounted": [0, 1, 2]}
    partition = Partition(**counts, invalid={}, sources={}, **tars)
    storage.create(run.plan, json.dumps(asdict(partition)).encode())
    lines = format_table(get_status(run))
    assert lines[1].split() == ["lists", "4", "shards", "done"]
    assert lines[2].split()[:5] == ["download", "52", "of", "about", str(31 + 21 + 26 + 10)]
    for shard, images in ((2, 9), (3, 9)):
        write_shard(run, shard, list(range(100 * shard, 100 * shard + images)))
        ledger.record(run.image_ledger, shard, WorkRecord(images + 1, 1, 0, 0, 10))
    lines = format_table(get_status(run))
    assert lines[1].split() == ["lists", "72", "images,", "4", "shards", "done"]
    assert lines[2].split()[:5] == ["download", "72", "of", "72", "images"]


def test_watching_on_a_terminal_draws_in_place_and_leaves_the_last_status(tmp_path: Path) -> None:
    run = run_fixture.make(tmp_path / "run", 1, 4, writers=()).run
    command = [sys.executable, "-m", "lotlip_data.pipeline.cli", "status", run.url, "--watch", "--every", "0.1"]
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(
        command,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    printed = b""
    while printed.count(b"\033[H") < 3:
        printed += os.read(ours, 4096)
    watching.send_signal(signal.SIGINT)
    while True:
        try:
            printed += os.read(ours, 4096)
        except OSError:  # the program has closed the terminal
            break
    os.close(ours)
    assert watching.wait() == 130
    drawn, _, left = printed.decode().partition("\033[?1049l")
    assert drawn.startswith("\033[?1049h\033[H")
    assert left.count("stage ") == 1 and left.rstrip().splitlines()[-1].startswith("next: ") and "stopped" not in left


def test_watching_goes_on_when_the_storage_answers_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [Inspection({}, ["first"]), OSError("503 SlowDown"), Inspection({}, ["second"]), KeyboardInterrupt()]

    def status(run: str, failures: bool) -> Inspection:
        result = results.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(inspection, "status", status)
    watching = CliRunner().invoke(app, ["status", run.url, "--watch", "--every", "0.1"])
    assert watching.exit_code == 130
    lines = watching.output.splitlines()
    assert lines[:5] == ["first", "first", "", "the run cannot be read now: OSError: 503 SlowDown", "second"]
    results.append(OSError("503 SlowDown"))
    assert CliRunner().invoke(app, ["status", run.url]).exit_code == 1


def test_a_shard_without_images_has_no_captions_left(run: Run) -> None:
    before = get_status(run)
    run_fixture.write_images(run, 2, [])
    after = get_status(run)
    assert after["fetched"] == before["fetched"] + 1
    assert {name: shards - before["captioned"][name] for name, shards in after["captioned"].items()} == {"grey": 1}


def test_a_captioner_with_several_texts_has_a_row_in_which_each_image_counts_once(run: Run) -> None:
    """One text is complete, one under way, one not started."""
    now = int(time.time())
    for name, shards in (("qwen_long", (0, 1)), ("qwen_tags", (0,))):
        for shard in shards:
            storage.create(run.caption_shard(name, shard), b"")
            record = WorkRecord((30, 20)[shard], 1, 100, now - 10, now)
            ledger.record(run.caption_ledger(name), shard, record)
    progress = get_status(run, now)
    progress["texts"] = {"qwen": ["qwen_long", "qwen_tags", "qwen_title"]}
    progress["not_started"] = {"recaption": ["qwen_title"], "train": []}
    lines = format_table(progress)
    (first,) = [number for number, line in enumerate(lines) if line.split()[:2] == ["recaption", "qwen"]]
    assert lines[first].split() == ["recaption", "qwen", "0", "of", "50", "images,", "3", "texts", "running"]
    assert re.fullmatch(r" +5 images/s, 30 tokens/s, \d+ s left", lines[first + 1])
    assert [line.split() for line in lines[first + 2 : first + 5]] == [
        ["qwen_long", "50", "of", "50", "images", "2", "done"],
        ["qwen_tags", "30", "of", "50", "images", "1", "running"],
        ["qwen_title", "not", "started"],
    ]
    assert max(map(len, lines)) <= 80
    progress["captioners"]["qwen_tags"]["stopped"] = "interrupted"
    assert [line.split()[-1] for line in format_table(progress) if "qwen" in line] == [
        *("stopped", "done", "stopped", "started"), "interrupted"
    ]  # fmt: skip


def test_a_captioner_with_several_texts_is_done_when_all_of_them_are(run: Run) -> None:
    for name in ("qwen_long", "qwen_tags"):
        for shard, images in ((0, 30), (1, 20)):
            storage.create(run.caption_shard(name, shard), b"")
            ledger.record(run.caption_ledger(name), shard, WorkRecord(images, 0, 100, 0, 10))
    progress = get_status(run)
    progress["texts"] = {"qwen": ["qwen_long", "qwen_tags"]}
    (line,) = [line for line in format_table(progress) if line.split()[:2] == ["recaption", "qwen"]]
    assert line.split() == ["recaption", "qwen", "50", "of", "50", "images,", "2", "texts", "done"]
