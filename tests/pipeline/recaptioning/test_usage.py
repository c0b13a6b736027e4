"""An actor's time, shared among its units."""

from pathlib import Path

import pytest

from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.recaptioning import usage as meter
from lotlip_data.pipeline.recaptioning.usage import Usage


def test_parts_of_the_time_add_up_to_the_time_in_which_there_was_any_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    actor = meter.UsageMeter(gpus=2)

    def at(seconds: float) -> None:
        now[0] = seconds

    at(5)  # nothing at hand
    first = actor.join()
    at(8)
    second = actor.join()
    at(12)
    actor.leave(first)
    at(20)
    assert (actor.usage_of(first), actor.usage_of(second)) == (Usage(3 + 2, 10), Usage(2 + 8, 20))
    actor.leave(second)
    at(100)
    assert actor.usage_of(first) + actor.usage_of(second) == Usage(20 - 5, 2 * (20 - 5))


def test_only_what_was_measured_counts_towards_hours_and_speed() -> None:
    """Shards of which nobody knows the time, as of a commit before a kill or of an import, are not made of 1 second."""
    unknown = WorkRecord(10_000, 0, 9, 0, 0)
    found = ledger.throughput(
        [WorkRecord(100, 0, 9, 50, 60, 4000, 2000), WorkRecord(50, 0, 9, 50, 60, 1000, 0), unknown]
    )
    assert (found.images, found.seconds, found.gpu_seconds, found.images_per_s) == (150, 5.0, 2.0, 30.0)
    assert ledger.throughput([unknown]).images_per_s is None


@pytest.mark.parametrize("spent", [(0, 0), (1234, 0), (1234, 2468)])
def test_a_tally_is_its_name(spent: tuple[int, int]) -> None:
    tally = WorkRecord(1, 2, 3, 4, 5, *spent)
    assert WorkRecord.named(f"00000-{tally.name}.parquet") == tally


def test_of_two_drivers_lines_the_one_that_worked_counts(tmp_path: Path) -> None:
    worked, came_late = WorkRecord(8, 0, 9, 10, 20, 9000), WorkRecord(8, 0, 9, 21, 21, 1)
    for tally in (worked, came_late):
        ledger.record(str(tmp_path), 3, tally)
    assert ledger.recorded(str(tmp_path)) == {3: worked}
