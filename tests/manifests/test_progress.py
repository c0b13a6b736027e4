"""Progress without a terminal is a bounded number of lines; a worker's progress goes to its driver."""

import logging

import pytest

from lotlip_data.manifests import progress
from lotlip_data.manifests.progress import Snapshot, forward_progress, progress_bar


@pytest.mark.parametrize("total", [1, 3, 19, 20, 21, 10_000])
def test_without_a_terminal_a_bar_is_at_most_twenty_lines_and_the_last_one_says_all(
    total: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", float("inf"))
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with caplog.at_level(logging.INFO), progress_bar("work", total, "shard") as bar:
        for _ in range(total):
            bar.update()
    lines = caplog.messages
    assert len(lines) == min(total, progress.LINES)
    assert lines[-1].startswith(f"work: {total:,} of {total:,} shards (100%), ")


def test_a_line_has_the_notes_the_rate_and_the_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with caplog.at_level(logging.INFO), progress_bar("llava", 100, "image", initial=40) as bar:
        bar.note("2 failed", "120 tokens/s")
        bar.advance_to(60)
    (line,) = caplog.messages
    assert line.startswith("llava: 60 of 100 images (60%), 2 failed, 120 tokens/s, ")
    assert "images/s" in line and line.endswith("left")


def test_a_bar_never_moves_back_and_ends_at_its_total() -> None:
    with progress_bar("work", 10, "shard") as bar:
        bar.advance_to(7)
        bar.advance_to(3)
        assert bar.done == 7
        bar.advance_to(12)
        assert bar.done == 10


def test_the_bars_of_a_worker_go_to_its_driver_and_not_to_a_screen(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FORWARD_SECONDS", 0.0)
    sent: list[Snapshot] = []
    with caplog.at_level(logging.INFO), forward_progress(sent.append), progress_bar("download", 2, "URL") as bar:
        bar.note(counts={"downloaded": 1})
        bar.update()
        bar.update()
    assert sent == [Snapshot("download", done, 2, "URL", (), {"downloaded": 1}) for done in (1, 2)]
    assert not caplog.messages


def test_tracked_items_come_in_order_and_are_counted_once_they_are_done(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        assert list(progress.track("abc", "verify", "file")) == ["a", "b", "c"]
    assert [line.split(" (")[0] for line in caplog.messages] == [f"verify: {done} of 3 files" for done in (1, 2, 3)]


def test_the_clock_of_a_bar_starts_again_after_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 s of waiting before the first unit, then 10 units in 5 s: 2 per second."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar("work", 10, "shard") as bar:
        with progress.waiting_for("starting Ray"):
            now[0] += 100
        now[0] += 5
        bar.done = 10
        assert bar._line(now[0]).endswith("2 shards/s")
