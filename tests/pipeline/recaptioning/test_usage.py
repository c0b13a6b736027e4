"""An actor's time is divided among its shards."""

from pathlib import Path

import pytest

from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.recaptioning import usage as usage_module
from lotlip_data.pipeline.recaptioning.usage import Usage


def test_the_shares_add_up_to_the_time_with_any_active_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(usage_module.time, "monotonic", lambda: now[0])
    meter = usage_module.UsageMeter(gpus=2)

    def at(seconds: float) -> None:
        now[0] = seconds

    at(5)  # no active shard
    first = meter.join()
    at(8)
    second = meter.join()
    at(12)
    meter.leave(first)
    at(20)
    assert (meter.usage_of(first), meter.usage_of(second)) == (Usage(3 + 2, 10), Usage(2 + 8, 20))
    meter.leave(second)
    at(100)
    assert meter.usage_of(first) + meter.usage_of(second) == Usage(20 - 5, 2 * (20 - 5))


def test_only_measured_time_counts_in_hours_and_speed() -> None:
    """The time is unknown after a kill between commit and ledger, and for imports. It must not count as 1 second."""
    unknown = WorkRecord(10_000, 0, 9, 0, 0)
    throughput = ledger.throughput(
        [WorkRecord(100, 0, 9, 50, 60, 4000, 2000), WorkRecord(50, 0, 9, 50, 60, 1000, 0), unknown]
    )
    assert (throughput.images, throughput.seconds, throughput.gpu_seconds, throughput.images_per_s) == (
        150,
        5.0,
        2.0,
        30.0,
    )
    assert ledger.throughput([unknown]).images_per_s is None


@pytest.mark.parametrize("spent", [(0, 0), (1234, 0), (1234, 2468)])
def test_a_work_record_is_read_back_from_its_name(spent: tuple[int, int]) -> None:
    record = WorkRecord(1, 2, 3, 4, 5, *spent)
    assert WorkRecord.named(f"00000-{record.name}.parquet") == record


def test_of_two_records_of_a_shard_the_driver_that_did_the_work_counts(tmp_path: Path) -> None:
    worked, found_committed = WorkRecord(8, 0, 9, 10, 20, 9000), WorkRecord(8, 0, 9, 21, 21, 1)
    for record in (worked, found_committed):
        ledger.record(str(tmp_path), 3, record)
    assert ledger.recorded(str(tmp_path)) == {3: worked}
