"""Ray tasks over many items: each item answered once, a bounded number under way, retries that are counted."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import ATTEMPTS, run_ray_tasks

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_no_more_tasks_are_submitted_than_twice_the_cpus() -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for item in range(30):
            drawn += 1
            yield item

    ended = []
    for item, answer in run_ray_tasks(lambda item: item * 2, items()):
        ended.append(item)
        assert answer == 2 * item
        assert drawn - len(ended) <= 2 * 2
    assert sorted(ended) == list(range(30))


def test_a_task_that_dies_or_raises_is_tried_again_and_an_error_for_people_is_not(tmp_path: Path) -> None:
    def troubled(item: str) -> str:
        with (tmp_path / item).open("a") as stream:
            stream.write("x")
        tries = (tmp_path / item).stat().st_size
        if item == "dies" or (item == "dies once" and tries == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "raises":
            raise OSError("the disk is full")
        if item == "asked wrongly":
            raise UserError("mend it")
        return item

    items = ["well", "dies", "dies once", "raises", "asked wrongly"]
    answers = dict(run_ray_tasks(troubled, items))
    assert {item: (tmp_path / item).stat().st_size for item in items} == {
        "well": 1,
        "dies": ATTEMPTS,
        "dies once": 2,
        "raises": ATTEMPTS,
        "asked wrongly": 1,
    }
    assert (answers["well"], answers["dies once"]) == ("well", "dies once")
    assert isinstance(answers["dies"], Exception) and isinstance(answers["asked wrongly"], UserError)
    assert isinstance(answers["raises"], OSError) and one_line(answers["raises"]) == "OSError: the disk is full"
