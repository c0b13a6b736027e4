"""An image that ends its captioner's process is found from the run's folder alone, and no other image is lost."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.recaptioning.poison_images import SMALL_BATCH_SIZE, InFlightLog, Suspects, find_suspects
from lotlip_data.pipeline.recaptioning.shard_attempt import TooManyDeaths
from tests.pipeline.recaptioning.grey_engine import CrashingEngine, caption, rows, write_shard

KILLED = 9


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.at(str(tmp_path / "a run"))


def deaths_until_done(run: Run, log: Path, *fatal_values: int, part_size: int = 40) -> int:
    """Caption shard 0 in one process after another until one succeeds. Returns the number of processes that died."""
    command = [sys.executable, "-m", "tests.pipeline.recaptioning.grey_engine", run.url, "0", str(part_size), str(log)]
    for deaths in range(30):
        if (code := subprocess.run([*command, *map(str, fatal_values)]).returncode) == 0:
            return deaths
        assert code == KILLED
    raise AssertionError("the shard was never completed")


def test_an_image_is_quarantined_after_it_has_killed_the_process_alone_twice(run: Run, tmp_path: Path) -> None:
    write_shard(run, 0, list(range(12)))
    assert deaths_until_done(run, tmp_path / "log", 5) == 1 + 2
    by_uid = {row["uid"]: row for row in rows(run, 0)}
    assert len(by_uid) == 12
    assert by_uid["u5"]["text"] is None
    assert by_uid["u5"]["error"].startswith(
        "the engine's process ended 3 times with this image, 2 of them with it alone"
    )
    assert all(by_uid[f"u{value}"]["text"] == f"It is {value}." for value in range(12) if value != 5)


@pytest.mark.slow
def test_poison_images_among_many_cost_a_few_kills_each_and_all_other_images_get_captions(
    run: Run, tmp_path: Path
) -> None:
    values = list(range(200))
    write_shard(run, 0, values)
    deaths = deaths_until_done(run, tmp_path / "log", 17, 90, 91)
    assert deaths <= 3 * 4
    by_uid = {row["uid"]: row for row in rows(run, 0)}
    assert [uid for uid, row in by_uid.items() if row["text"] is None] == ["u17", "u90", "u91"]
    assert all(by_uid[f"u{value}"]["text"] == f"It is {value}." for value in values if value not in (17, 90, 91))
    assert not storage.exists(run.caption_parts("grey", 0))


@pytest.mark.parametrize("part_size", [8, 40, 100])
def test_a_kill_costs_at_most_one_part(run: Run, tmp_path: Path, part_size: int) -> None:
    """Over all kills of a shard, captions that were finished more than once are at most `part_size` per kill."""
    values = list(range(250))
    write_shard(run, 0, values)
    deaths = deaths_until_done(run, tmp_path / "log", 100, part_size=part_size)
    finished = Counter((tmp_path / "log").read_text().split())
    repeated = sum(count - 1 for count in finished.values())
    assert deaths and len(finished) == 249
    assert repeated <= deaths * part_size


def test_a_kill_from_outside_quarantines_no_image(run: Run, tmp_path: Path) -> None:
    """Images that were in flight are tried again, first by themselves, and get their captions."""
    write_shard(run, 0, list(range(50)))
    InFlightLog(run.caption_parts("grey", 0), "one").add(f"u{value}" for value in range(4, 30))
    InFlightLog(run.caption_parts("grey", 0), "two").add(["u5"])  # killed from outside while this image was tried alone
    assert deaths_until_done(run, tmp_path / "log") == 0
    assert [row["text"] for row in rows(run, 0)] == [f"It is {value}." for value in range(50)]


def test_an_image_that_died_alone_is_tried_again_after_all_other_images(run: Run, tmp_path: Path) -> None:
    """A kill from outside that recurs soon after each start hits another image the second time.

    Each death during a try of a single image names that image only.
    """
    write_shard(run, 0, list(range(50)))
    InFlightLog(run.caption_parts("grey", 0), "one").add(["u5"])
    InFlightLog(run.caption_parts("grey", 0), "two").add(["u30"])
    assert deaths_until_done(run, tmp_path / "log", 5) == 1
    log = (tmp_path / "log").read_text().split()
    assert {*log[:48]} == {str(value) for value in range(50)} - {"5", "30"} and log[48:] == ["30"]
    errors = {row["uid"]: row["error"] for row in rows(run, 0) if row["text"] is None}
    assert list(errors) == ["u5"] and "2 times with this image, 2 of them with it alone" in errors["u5"]


def test_a_death_in_a_batch_does_not_count_as_a_death_alone_once_the_others_are_saved(run: Run) -> None:
    folder = run.caption_parts("grey", 0)
    for attempt in ("one", "two"):
        InFlightLog(folder, attempt).add(["u1", "u2", "u3"])
    InFlightLog(folder, "three").add(["u3"])
    assert find_suspects([folder], {"u1", "u2"}).deferred == {"u3"}


def test_suspects_are_tried_in_smaller_and_smaller_batches(run: Run) -> None:
    folder = run.caption_parts("grey", 0)
    many = [f"u{value}" for value in range(40)]
    InFlightLog(folder, "one").add(many)
    assert find_suspects([folder], set()).small_batch == set(many)
    InFlightLog(folder, "two").add(many[:SMALL_BATCH_SIZE])
    suspects = find_suspects([folder], {"u1"})
    assert suspects.single == set(many[:SMALL_BATCH_SIZE]) - {"u1"}
    assert suspects.small_batch == set(many[SMALL_BATCH_SIZE:])
    for attempt, group in (("three", "single"), ("four", "deferred")):
        assert "u2" in getattr(find_suspects([folder], {"u1"}), group)
        log = InFlightLog(folder, attempt)
        log.add(["u2"])
        log.record_death("it hung")
    suspects = find_suspects([folder], {"u1"})
    assert list(suspects.poison) == ["u2"] and suspects.poison["u2"].endswith("it hung")


def test_an_attempt_that_is_withdrawn_leaves_no_suspects(run: Run) -> None:
    log = InFlightLog(run.caption_parts("grey", 0), "one")
    log.add(["u1"])
    log.withdraw()
    log.add(["u2"])
    assert find_suspects([run.caption_parts("grey", 0)], set()) == Suspects()


def test_a_torn_log_names_no_suspects(run: Run) -> None:
    storage.replace(storage.join(run.caption_parts("grey", 0), "suspects-torn.json"), b'{"uids": [')
    assert find_suspects([run.caption_parts("grey", 0)], set()) == Suspects()


def test_an_engine_that_dies_with_many_images_is_reported_instead_of_the_images(run: Run, tmp_path: Path) -> None:
    write_shard(run, 0, list(range(60)))
    folder = run.caption_parts("grey", 0)
    for value in range(20):
        InFlightLog(folder, f"first-{value}").add([f"u{value}"])
        InFlightLog(folder, f"second-{value}").add([f"u{value}"])
    with pytest.raises(TooManyDeaths, match=r"20 images of shard 00000 .* points to the engine"):
        caption(run, CrashingEngine(str(tmp_path / "log"), set()), 0)
