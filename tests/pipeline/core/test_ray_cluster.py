"""Starting Ray on a busy machine, on which Ray times out. The tests raise the error that Ray raises."""

from typing import Any

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core.ray_cluster import STARTS, start_local

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
