"""Starting Ray on a busy machine, on which Ray times out. The tests raise the error that Ray raises."""

from typing import Any

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core.ray_cluster import STARTS, cluster, ray_session, start_local

TIMED_OUT = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """The results of the next starts of Ray, in order: an exception, or None for success."""
    import ray

    outcomes: list[Exception | None] = []

    def init(**options: Any) -> None:
        assert options["address"] == "local" and options["num_cpus"] == 2
        if error := outcomes.pop(0):
            raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return outcomes


def test_ray_is_started_again_after_a_timeout(starts: list[Exception | None]) -> None:
    starts += [*[Exception(TIMED_OUT)] * (STARTS - 1), None]
    start_local(num_cpus=2)
    assert not starts


def test_repeated_timeouts_are_an_error_with_a_remedy(starts: list[Exception | None]) -> None:
    starts += [Exception(TIMED_OUT)] * (STARTS + 1)
    with pytest.raises(UserError, match=r"Ray did not start on this machine in 3 attempts: .* RAY_ADDRESS"):
        start_local(num_cpus=2)
    assert len(starts) == 1


def test_another_error_is_not_retried(starts: list[Exception | None]) -> None:
    starts += [ValueError("num_cpus is no number"), None]
    with pytest.raises(ValueError, match="no number"):
        start_local(num_cpus=2)
    assert starts == [None]


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The connections to Ray and their ends, in order."""
    import ray

    events: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: events[-1:] == ["start"])
    monkeypatch.setattr(ray, "init", lambda **options: events.append("start"))
    monkeypatch.setattr(ray, "shutdown", lambda: events.append("stop"))
    return events


def test_a_session_starts_ray_at_most_once_and_stops_it_at_its_end(connections: list[str]) -> None:
    with ray_session():
        assert connections == []  # not before a stage needs it
        for _ in range(2):
            with ray_session(), cluster():
                assert connections == ["start"]
        assert connections == ["start"]
    assert connections == ["start", "stop"]
    with pytest.raises(KeyError), ray_session(), cluster():
        raise KeyError
    assert connections == ["start", "stop"] * 2


def test_without_a_session_ray_is_stopped_after_each_use(connections: list[str]) -> None:
    for _ in range(2):
        with cluster():
            pass
    assert connections == ["start", "stop"] * 2
