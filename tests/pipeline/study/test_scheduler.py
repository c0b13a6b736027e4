"""The study's scheduler: no job is done twice, interrupted jobs resume, failures do not affect other jobs."""

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study import scheduler
from lotlip_data.pipeline.study.scheduler import RunSummary, run_jobs
from tests.pipeline.study.jobs_fixture import FakeJob


def run(folder: Path, jobs: list[FakeJob], seconds: float | None = None) -> RunSummary:
    return run_jobs(str(folder), None, jobs, 2, seconds)


def started(folder: Path) -> list[str]:
    return sorted(line.split()[0] for line in (folder / "started").read_text().splitlines())


def is_running(process: int) -> bool:
    try:
        return b"spawn_main" in Path("/proc", str(process), "cmdline").read_bytes()  # a zombie's is empty
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_every_job_is_done_once_whatever_the_number_of_runs(tmp_path: Path) -> None:
    jobs = [FakeJob(str(number)) for number in range(7)]
    assert run(tmp_path, jobs[:3]) == RunSummary(3, 0, ())
    assert run(tmp_path, jobs) == RunSummary(4, 0, ())
    assert run(tmp_path, jobs) == RunSummary(0, 0, ())
    assert started(tmp_path) == [str(number) for number in range(7)]


@pytest.mark.slow
def test_a_job_that_fails_or_ends_its_process_is_reported_and_stops_no_other(tmp_path: Path) -> None:
    """More jobs end their process than there are processes."""
    outcomes = {"a": "fails", "b": "dies", "c": "dies", "d": "dies", "e": "breaks"}
    summary = run(tmp_path, [*(FakeJob(*pair) for pair in outcomes.items()), FakeJob("f"), FakeJob("g")])
    assert (summary.done, summary.left) == (2, 5)
    assert (tmp_path / "f.done").exists() and (tmp_path / "g.done").exists()
    died = [f"{name}: its process died" for name in "bcd"]
    assert sorted(summary.failed) == ["a: UserError: no good", *died, "e: ZeroDivisionError: division by zero"]


def test_the_time_limit_may_exceed_the_longest_wait_of_the_operating_system(tmp_path: Path) -> None:
    assert run(tmp_path, [FakeJob("a")], seconds=1e9).done == 1


def test_jobs_work_in_the_study_s_folder_so_that_it_can_be_moved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a job records is relative to the folder. The log has the count of jobs and the time to go."""
    caplog.set_level("INFO")
    assert run(tmp_path / "old", [FakeJob("a")]).done == 1
    (tmp_path / "old").rename(tmp_path / "new")
    assert run(tmp_path / "new", [FakeJob("a"), FakeJob("b")]) == RunSummary(1, 0, ())
    rows = [line.split() for line in (tmp_path / "new" / "started").read_text().splitlines()]
    assert [(name, folder, study) for name, _, folder, study in rows] == [
        ("a", str(tmp_path / "old"), "."),
        ("b", str(tmp_path / "new"), "."),
    ]
    progress = [message for message in caplog.messages if "to go" in message]
    assert progress == ["1/1, 0:00:00 to go: a", "1/1, 0:00:00 to go: b"]


@pytest.mark.slow
def test_a_job_that_the_time_limit_interrupts_is_done_in_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is up when the second job has started. It waits for a file that is created after its process has ended."""
    jobs = [FakeJob("a"), FakeJob("b", "waits")]

    def clock() -> float:
        return float((tmp_path / "a.done").exists() and "b" in started(tmp_path))

    monkeypatch.setattr(scheduler, "monotonic", clock)
    assert not run(tmp_path, jobs, seconds=1.0).failed
    assert not (tmp_path / "b.done").exists()
    monkeypatch.undo()
    (tmp_path / "go").touch()
    assert run(tmp_path, jobs).left == 0
    assert started(tmp_path) == ["a", "b", "b"]


def test_a_study_that_another_process_runs_is_rejected(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process runs this study"):
            run(tmp_path, [FakeJob("a")])
    assert not (tmp_path / "started").exists()


def test_the_workers_of_a_killed_study_end(tmp_path: Path) -> None:
    """Such a worker would write the training that the next run resumes."""
    parent = subprocess.Popen([sys.executable, "-m", "tests.pipeline.study.jobs_fixture", str(tmp_path)])
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text().endswith("\n"):
        assert parent.poll() is None
        time.sleep(0.05)
    worker = int((tmp_path / "started").read_text().split()[1])
    parent.kill()
    parent.wait()
    while is_running(worker):
        time.sleep(0.05)  # the test's own time limit ends this loop
    (tmp_path / "go").touch()
    assert not (tmp_path / "a.done").exists()
    assert run(tmp_path, [FakeJob("a", "waits")]) == RunSummary(1, 0, ())
