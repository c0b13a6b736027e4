"""Ray on a busy machine, which takes longer than Ray waits for itself. The error is Ray's own, made here."""

from typing import Any

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core.ray_tasks import STARTS, start_local

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """What the next starts of Ray end in, each in turn; None is a start that succeeds."""
    import ray

    outcomes: list[Exception | None] = []

    def init(**options: Any) -> None:
        assert options["address"] == "local" and options["num_cpus"] == 2
        if error := outcomes.pop(0):
            raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return outcomes


def test_ray_is_started_again_where_it_was_too_slow(starts: list[Exception | None]) -> None:
    starts += [*[Exception(LATE)] * (STARTS - 1), None]
    start_local(num_cpus=2)
    assert not starts


def test_a_machine_on_which_ray_never_comes_up_is_told_of(starts: list[Exception | None]) -> None:
    starts += [Exception(LATE)] * (STARTS + 1)
    with pytest.raises(UserError, match=r"Ray did not come up on this machine, 3 times over: .* RAY_ADDRESS"):
        start_local(num_cpus=2)
    assert len(starts) == 1


def test_what_else_ends_a_start_is_not_tried_again(starts: list[Exception | None]) -> None:
    starts += [ValueError("num_cpus is no number"), None]
    with pytest.raises(ValueError, match="no number"):
        start_local(num_cpus=2)
    assert starts == [None]
