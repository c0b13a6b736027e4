"""Ray tasks over many items: one result per item, a bounded number at a time, and a limited number of attempts."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.progress import Snapshot, progress_bar
from lotlip_data.manifests.storage_retry import DiskError
from lotlip_data.pipeline.core import ray_tasks
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import ATTEMPTS, assigned_cpus, assigned_device, run_ray_tasks
from lotlip_data.pipeline.core.stage_threads import StageThreads
from lotlip_data.pipeline.core.upstream import NOT_YET, NotYet

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_at_most_two_tasks_per_cpu_are_submitted_at_a_time() -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for item in range(30):
            drawn += 1
            yield item

    finished = []
    for item, result in run_ray_tasks(lambda item: item * 2, items()):
        finished.append(item)
        assert result == 2 * item
        assert drawn - len(finished) <= 2 * 2
    assert sorted(finished) == list(range(30))


def test_the_progress_inside_running_tasks_reaches_the_driver(tmp_path: Path) -> None:
    def task(item: str) -> str:
        with progress_bar("work", 4, "row") as bar:
            bar.note(counts={"good": 3})
            bar.update(4)
            while not (tmp_path / item).exists():  # until the driver has seen it
                time.sleep(0.05)
        return item

    seen: dict[str, Snapshot] = {}

    def show(running: Sequence[tuple[str, Snapshot]]) -> None:
        for item, state in running:
            seen[item] = state
            (tmp_path / item).touch()

    assert {item for item, _ in run_ray_tasks(task, ["a", "b"], on_progress=show)} == {"a", "b"}
    assert seen == {item: Snapshot("work", 4, 4, "row", (), {"good": 3}) for item in ("a", "b")}


def test_a_task_that_dies_or_raises_is_retried_and_a_user_error_is_not(tmp_path: Path) -> None:
    def task(item: str) -> str:
        with (tmp_path / item).open("a") as stream:
            stream.write("x")
        attempts = (tmp_path / item).stat().st_size
        if item == "dies" or (item == "dies once" and attempts == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "raises":
            raise OSError("the disk is full")
        if item == "user error":
            raise UserError("fix it")
        return item

    items = ["succeeds", "dies", "dies once", "raises", "user error"]
    results = dict(run_ray_tasks(task, items))
    assert {item: (tmp_path / item).stat().st_size for item in items} == {
        "succeeds": 1,
        "dies": ATTEMPTS,
        "dies once": 2,
        "raises": ATTEMPTS,
        "user error": 1,
    }
    assert (results["succeeds"], results["dies once"]) == ("succeeds", "dies once")
    assert isinstance(results["dies"], Exception) and isinstance(results["user error"], UserError)
    assert isinstance(results["raises"], OSError) and one_line(results["raises"]) == "OSError: the disk is full"


def test_a_refused_write_ends_all_tasks_at_once(tmp_path: Path) -> None:
    def task(item: int) -> int:
        with (tmp_path / str(item)).open("a") as stream:
            stream.write("x")
        raise DiskError(errno.ENOSPC, "/run/images: the disk is full")

    with pytest.raises(DiskError, match="/run/images: the disk is full"):
        list(run_ray_tasks(task, range(100)))
    assert all(file.stat().st_size == 1 for file in tmp_path.iterdir())  # no second attempt
    assert len(list(tmp_path.iterdir())) <= 2 * 2


def test_a_task_computes_on_a_gpu_only_where_ray_reserved_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees the GPUs of its machine in every task."""

    def place(item: int) -> tuple[str, int]:
        import torch

        torch.cuda.is_available = lambda: True
        torch.cuda.device_count = lambda: 8
        return assigned_device("x"), assigned_cpus()

    assert [result for _, result in run_ray_tasks(place, [1], num_cpus=2)] == [("cpu", 2)]
    monkeypatch.setattr(ray_tasks, "_assigned", lambda resource: 0.5)
    with pytest.raises(UserError, match=r"x: Ray reserved 1 GPU on .*, but torch sees 0"):
        assigned_device("x")
    monkeypatch.setattr(ray_tasks, "require_assigned", lambda gpus, user: None)
    assert assigned_device("x") == "cuda"


def test_a_process_whose_gpu_has_failed_ends_so_that_the_next_task_gets_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No call of a process to its GPU succeeds after such an error."""
    ends: list[float] = []
    monkeypatch.setattr(ray_tasks, "end_process", ends.append)
    message = r"features: a GPU of .* has failed \(.*illegal memory access"
    with pytest.raises(RuntimeError, match=message), ray_tasks.device_failures("features"):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert ends == [ray_tasks.EXIT_SECONDS]
    with pytest.raises(ValueError, match="a bad tar"), ray_tasks.device_failures("features"):
        raise ValueError("a bad tar")
    assert len(ends) == 1


@pytest.mark.slow
def test_tasks_on_a_gpu_share_a_process_and_with_it_their_model() -> None:
    """On a Ray of its own, whose one GPU exists in Ray's accounting only."""
    script = (
        "import os, ray; from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks; "
        "ray.init(address='local', num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False); "
        "print(len({pid for _, pid in run_ray_tasks(lambda item: os.getpid(), range(6), num_gpus=1)}))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split()[-1] == "1"


def test_items_that_come_later_are_run_when_they_come_and_nothing_waits_for_them() -> None:
    """Each item comes when the result of the one before is there; the last comes long after nothing runs."""
    finished: list[int] = []

    def items() -> Iterator[int | NotYet]:
        for item in range(4):
            yield item
            while len(finished) <= item:
                yield NOT_YET
        yield NOT_YET
        yield 4

    for item, result in run_ray_tasks(lambda item: item * 2, items(), name="double"):
        assert result == 2 * item
        finished.append(item)
    assert finished == list(range(5))


def test_tasks_of_several_stages_run_at_the_same_time_and_are_cancelled_with_them(tmp_path: Path) -> None:
    """One stage fails while the other has a task that never ends."""

    def hang(item: int) -> None:
        (tmp_path / "hangs").touch()
        time.sleep(10_000)

    def stage() -> None:
        list(run_ray_tasks(hang, [1]))

    def fail() -> None:
        for _, result in run_ray_tasks(lambda item: (tmp_path / "hangs").exists(), wait_for_the_other()):
            if result:
                raise OSError("the disk is full")

    def wait_for_the_other() -> Iterator[int]:
        while True:
            yield 1

    with pytest.raises(OSError, match="the disk is full"), StageThreads[None]() as threads:
        threads.start("download", stage)
        threads.start("shard", fail)
        threads.results()
    assert threads.has_ended("download") and threads.has_ended("shard")
    assert dict(run_ray_tasks(lambda item: item, [1, 2])) == {1: 1, 2: 2}  # the CPU of the cancelled task is free
