"""An image that ends its captioner's process is found from the run's folder alone, and costs no other image."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.recaptioning.poison_images import SMALL_BATCH_SIZE, InFlightLog, Suspects, find_suspects
from lotlip_data.pipeline.recaptioning.worker import TooManyDeaths
from tests.pipeline.recaptioning.grey_engine import Fragile, caption, fetched, rows

KILLED = 9


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.at(str(tmp_path / "a run"))


def deaths_until_done(run: Run, log: Path, *deadly: int, part_size: int = 40) -> int:
    """Starts the unit again in a new process until one comes to its end; returns how many did not."""
    command = [sys.executable, "-m", "tests.pipeline.recaptioning.grey_engine", run.url, "0", str(part_size), str(log)]
    for deaths in range(30):
        if (code := subprocess.run([*command, *map(str, deadly)]).returncode) == 0:
            return deaths
        assert code == KILLED
    raise AssertionError("the unit never came to its end")


def test_a_deadly_image_is_quarantined_once_it_has_killed_alone_twice(run: Run, tmp_path: Path) -> None:
    fetched(run, 0, list(range(12)))
    assert deaths_until_done(run, tmp_path / "log", 5) == 1 + 2
    found = {row["uid"]: row for row in rows(run, 0)}
    assert len(found) == 12
    assert found["u5"]["text"] is None
    assert found["u5"]["error"].startswith(
        "the engine's process ended 3 times with this image, 2 of them with it alone"
    )
    assert all(found[f"u{value}"]["text"] == f"It is {value}." for value in range(12) if value != 5)


def test_among_many_it_takes_one_kill_more_each_and_all_others_keep_their_captions(run: Run, tmp_path: Path) -> None:
    values = list(range(200))
    fetched(run, 0, values)
    deaths = deaths_until_done(run, tmp_path / "log", 17, 90, 91)
    assert deaths <= 3 * 4
    found = {row["uid"]: row for row in rows(run, 0)}
    assert [uid for uid, row in found.items() if row["text"] is None] == ["u17", "u90", "u91"]
    assert all(found[f"u{value}"]["text"] == f"It is {value}." for value in values if value not in (17, 90, 91))
    assert not storage.exists(run.caption_parts("seer", 0))


@pytest.mark.parametrize("part_size", [8, 40, 100])
def test_a_kill_costs_at_most_one_part(run: Run, tmp_path: Path, part_size: int) -> None:
    """Counted over all kills of a unit: captions that were finished more than once, by kill, against `part_size`."""
    values = list(range(250))
    fetched(run, 0, values)
    deaths = deaths_until_done(run, tmp_path / "log", 100, part_size=part_size)
    finished = Counter((tmp_path / "log").read_text().split())
    again = sum(count - 1 for count in finished.values())
    assert deaths and len(finished) == 249
    assert again <= deaths * part_size


def test_an_innocent_kill_leaves_nobody_guilty(run: Run, tmp_path: Path) -> None:
    """Whoever was under way is tried again, first by itself, and gets its caption."""
    fetched(run, 0, list(range(50)))
    InFlightLog(run.caption_parts("seer", 0), "one").add(f"u{value}" for value in range(4, 30))
    InFlightLog(run.caption_parts("seer", 0), "two").add(["u5"])  # killed from outside while it was tried by itself
    assert deaths_until_done(run, tmp_path / "log") == 0
    assert [row["text"] for row in rows(run, 0)] == [f"It is {value}." for value in range(50)]


def test_what_died_alone_is_tried_again_when_all_else_is_done(run: Run, tmp_path: Path) -> None:
    """Whatever kills from outside soon after each start meets another image the second time; and of those that are
    tried alone, each death names one image only."""
    fetched(run, 0, list(range(50)))
    InFlightLog(run.caption_parts("seer", 0), "one").add(["u5"])
    InFlightLog(run.caption_parts("seer", 0), "two").add(["u30"])
    assert deaths_until_done(run, tmp_path / "log", 5) == 1
    log = (tmp_path / "log").read_text().split()
    assert {*log[:48]} == {str(value) for value in range(50)} - {"5", "30"} and log[48:] == ["30"]
    found = {row["uid"]: row["error"] for row in rows(run, 0) if row["text"] is None}
    assert list(found) == ["u5"] and "2 times with this image, 2 of them with it alone" in found["u5"]


def test_a_death_among_others_is_none_alone_whatever_became_of_them(run: Run) -> None:
    folder = run.caption_parts("seer", 0)
    for attempt in ("one", "two"):
        InFlightLog(folder, attempt).add(["u1", "u2", "u3"])
    InFlightLog(folder, "three").add(["u3"])
    assert find_suspects(folder, {"u1", "u2"}).deferred == {"u3"}


def test_suspects_are_tried_in_fewer_and_fewer(run: Run) -> None:
    folder = run.caption_parts("seer", 0)
    many = [f"u{value}" for value in range(40)]
    InFlightLog(folder, "one").add(many)
    assert find_suspects(folder, set()).small_batch == set(many)
    InFlightLog(folder, "two").add(many[:SMALL_BATCH_SIZE])
    suspects = find_suspects(folder, {"u1"})
    assert suspects.single == set(many[:SMALL_BATCH_SIZE]) - {"u1"}
    assert suspects.small_batch == set(many[SMALL_BATCH_SIZE:])
    for attempt, where in (("three", "single"), ("four", "deferred")):
        assert "u2" in getattr(find_suspects(folder, {"u1"}), where)
        trail = InFlightLog(folder, attempt)
        trail.add(["u2"])
        trail.record_death("it hung")
    suspects = find_suspects(folder, {"u1"})
    assert list(suspects.poison) == ["u2"] and suspects.poison["u2"].endswith("it hung")


def test_an_attempt_that_ends_in_good_order_leaves_no_suspects(run: Run) -> None:
    trail = InFlightLog(run.caption_parts("seer", 0), "one")
    trail.add(["u1"])
    trail.withdraw()
    trail.add(["u2"])
    assert find_suspects(run.caption_parts("seer", 0), set()) == Suspects()


def test_a_torn_note_is_no_suspicion(run: Run) -> None:
    storage.replace(storage.join(run.caption_parts("seer", 0), "suspects-torn.json"), b'{"uids": [')
    assert find_suspects(run.caption_parts("seer", 0), set()) == Suspects()


def test_an_engine_that_dies_with_every_image_is_not_the_images_fault(run: Run, tmp_path: Path) -> None:
    fetched(run, 0, list(range(60)))
    folder = run.caption_parts("seer", 0)
    for value in range(20):
        InFlightLog(folder, f"first-{value}").add([f"u{value}"])
        InFlightLog(folder, f"second-{value}").add([f"u{value}"])
    with pytest.raises(TooManyDeaths, match=r"20 images of shard 00000 .* points to the engine"):
        caption(run, Fragile(str(tmp_path / "log"), set()), 0)
