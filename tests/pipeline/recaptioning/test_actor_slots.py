"""Actors that wait for shards leave room for the stages that bring them."""

import pytest

from lotlip_data.pipeline.recaptioning import actor_slots
from lotlip_data.pipeline.recaptioning.actor_slots import IDLE_SECONDS, YIELD_SECONDS, CpuBudget, IdleActors


@pytest.mark.parametrize(
    ("cluster", "reserved"),
    [
        (1, [0, 0, 0]),  # the only CPU downloads
        (2, [1, 0, 0]),
        (3, [1, 1, 0]),
        (16, [1, 1, 1]),
        (0, [1, 1, 1]),  # an autoscaler brings machines for what is asked
    ],
)
def test_a_cpu_of_the_cluster_is_left_to_the_other_stages(cluster: int, reserved: list[int]) -> None:
    budget = CpuBudget(lambda: cluster, is_shared=True)
    assert [budget.take(1) for _ in reserved] == reserved
    alone = CpuBudget(lambda: cluster, is_shared=False)
    assert [alone.take(1) for _ in reserved] == [1, 1, 1]


def test_the_cpus_of_a_released_actor_are_free_again() -> None:
    budget = CpuBudget(lambda: 4, is_shared=True)
    assert [budget.take(2), budget.take(2)] == [2, 0]
    budget.give_back(2)
    assert budget.take(3) == 3


def test_an_idle_actor_is_released_after_a_while_and_sooner_where_another_pool_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(actor_slots.time, "monotonic", lambda: now)
    idle = IdleActors[str]()
    idle.note(["first", "second"])
    now = YIELD_SECONDS
    assert idle.expired(is_room_wanted=False) == []
    idle.note(["second"])  # the first has got a shard
    idle.note(["first", "second"])
    assert idle.expired(is_room_wanted=True) == ["second"] and idle.released == 1
    idle.note(["first"])
    now += IDLE_SECONDS
    assert idle.expired(is_room_wanted=False) == ["first"] and idle.released == 2
