"""The study's runner: nothing is done twice, what is stopped is done next time, failures cost nobody else."""

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study import scheduler as runner
from lotlip_data.pipeline.study.experiments import Design
from lotlip_data.pipeline.study.scheduler import Ran, run
from tests.pipeline.study.jobs_fixture import Told

DESIGN = Design()


def play(folder: Path, tasks: list[Told], seconds: float | None = None) -> Ran:
    return run(str(folder), DESIGN, tasks, 2, seconds)


def begun(folder: Path) -> list[str]:
    return sorted(line.split()[0] for line in (folder / "begun").read_text().splitlines())


def is_running(process: int) -> bool:
    try:
        return b"spawn_main" in Path("/proc", str(process), "cmdline").read_bytes()  # a zombie's is empty
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_every_task_is_done_once_however_often_it_is_run(tmp_path: Path) -> None:
    tasks = [Told(str(number)) for number in range(7)]
    assert play(tmp_path, tasks[:3]) == Ran(3, 0, ())
    assert play(tmp_path, tasks) == Ran(4, 0, ())
    assert play(tmp_path, tasks) == Ran(0, 0, ())
    assert begun(tmp_path) == [str(number) for number in range(7)]


def test_a_task_that_fails_or_ends_its_process_is_told_and_costs_no_other(tmp_path: Path) -> None:
    """As many die as there are processes, and more."""
    fates = {"a": "fails", "b": "dies", "c": "dies", "d": "dies", "e": "breaks"}
    ran = play(tmp_path, [*(Told(*one) for one in fates.items()), Told("f"), Told("g")])
    assert (ran.done, ran.left) == (2, 5) and (tmp_path / "f.done").exists() and (tmp_path / "g.done").exists()
    died = [f"{name}: its process died" for name in "bcd"]
    assert sorted(ran.failed) == ["a: UserError: no good", *died, "e: ZeroDivisionError: division by zero"]


def test_time_may_be_longer_than_a_computer_can_wait(tmp_path: Path) -> None:
    assert play(tmp_path, [Told("a")], seconds=1e9).done == 1


def test_what_time_ran_out_on_is_done_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time runs out when the second task has begun; it waits for a file that only comes after its process has ended."""
    tasks = [Told("a"), Told("b", "waits")]

    def clock() -> float:
        return float((tmp_path / "a.done").exists() and "b" in begun(tmp_path))

    monkeypatch.setattr(runner, "monotonic", clock)
    assert not play(tmp_path, tasks, seconds=1.0).failed
    assert not (tmp_path / "b.done").exists()
    monkeypatch.undo()
    (tmp_path / "go").touch()
    assert play(tmp_path, tasks).left == 0
    assert begun(tmp_path) == ["a", "b", "b"]


def test_a_study_that_another_process_runs_is_left_alone(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process runs this study"):
            play(tmp_path, [Told("a")])
    assert not (tmp_path / "begun").exists()


def test_a_killed_study_leaves_no_worker_that_goes_on(tmp_path: Path) -> None:
    """A worker of a killed parent would write the training that the next start takes up."""
    parent = subprocess.Popen([sys.executable, "-m", "tests.pipeline.study.jobs_fixture", str(tmp_path)])
    while not (tmp_path / "begun").exists() or not (tmp_path / "begun").read_text().endswith("\n"):
        assert parent.poll() is None
        time.sleep(0.05)
    worker = int((tmp_path / "begun").read_text().split()[1])
    parent.kill()
    parent.wait()
    while is_running(worker):
        time.sleep(0.05)  # the limit is the test's own
    (tmp_path / "go").touch()
    assert not (tmp_path / "a.done").exists()
    assert play(tmp_path, [Told("a", "waits")]) == Ran(1, 0, ())
