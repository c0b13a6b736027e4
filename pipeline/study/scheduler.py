"""Runs the jobs of a study in parallel processes until all are done or time is up.

Each process has one thread and runs one job after another. A job that is interrupted by the time limit, Ctrl-C or a
power cut resumes in the next run. A finished job leaves a file that is created once, so nothing is done twice.

The processes work in the study's folder and know it as ".". So no path that a job records leads out of the folder, and
a folder that was moved resumes.
"""

import fcntl
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from lotlip_data.manifests.errors import UserError

logger = logging.getLogger(__name__)

MAX_WAIT_SECONDS = 3600.0
"""The operating system rejects waits of months."""


class Job(Protocol):
    """A piece of work of a study, which is pickled and sent to a process. `design` is the study's."""

    def is_done(self, study: str, design: Any) -> bool: ...

    def prerequisites(self) -> "Sequence[Job]":
        """The jobs that must be done before this one."""

    def run(self, study: str, design: Any) -> None:
        """Do the work. The study's folder `study` is the current one."""


@dataclass(frozen=True)
class RunSummary:
    """The outcome of a run of the study."""

    done: int
    """Number of jobs that this run finished."""
    left: int
    """Number of jobs that are not done, the failed ones included."""
    failed: tuple[str, ...]
    """The failed jobs with their errors."""


def run_jobs(study: str, design: Any, jobs: Sequence[Job], processes: int, seconds: float | None) -> RunSummary:
    """Run the jobs that are not done yet.

    Args:
        study: The folder of the study.
        design: The design of the study.
        jobs: The jobs in the order in which they should start; see `plan_jobs`.
        processes: Number of worker processes.
        seconds: Time limit; None for none.

    Raises:
        UserError: Another process runs this study.
    """
    Path(study).mkdir(parents=True, exist_ok=True)
    pending = [job for job in jobs if not job.is_done(study, design)]
    if not pending or seconds == 0:
        return RunSummary(0, len(pending), ())
    deadline = None if seconds is None else monotonic() + seconds
    with _exclusive_lock(study):
        return _Scheduler(study, design, pending, deadline).run(min(processes, len(pending)))


class _Scheduler:
    """The parent of the worker processes. It knows which worker has which job, and what is pending."""

    def __init__(self, study: str, design: Any, pending: list[Job], deadline: float | None) -> None:
        self._study, self._design, self._pending, self._deadline = study, design, pending, deadline
        self._total, self._done, self._errors = len(pending), 0, dict[Job, str]()
        self._started = monotonic()
        self._job_of_worker: dict[Connection, Job | None] = {}
        self._workers: list[BaseProcess] = []

    def run(self, processes: int) -> RunSummary:
        try:
            for _ in range(processes):
                self._start_worker()
            while self._dispatch() and self._wait():
                pass
        finally:
            for worker in self._workers:
                worker.terminate()
            for worker in self._workers:
                worker.join()
        failed = tuple(f"{job}: {error}" for job, error in self._errors.items())
        return RunSummary(self._done, self._total - self._done, failed)

    def _start_worker(self) -> None:
        context = multiprocessing.get_context("spawn")
        connection, worker_connection = context.Pipe()
        worker = context.Process(target=_run_worker, args=(worker_connection, self._study, self._design))
        worker.start()
        worker_connection.close()  # so that the death of the worker ends the stream of `connection`
        self._workers.append(worker)
        self._job_of_worker[connection] = None

    def _dispatch(self) -> bool:
        """Send jobs to idle workers. Returns False if no worker has a job."""
        for connection, job in self._job_of_worker.items():
            if job is None and (ready := next(filter(self._is_ready, self._pending), None)) is not None:
                self._pending.remove(ready)
                self._job_of_worker[connection] = ready
                connection.send(ready)
        return any(self._job_of_worker.values())

    def _is_ready(self, job: Job) -> bool:
        return all(first.is_done(self._study, self._design) for first in job.prerequisites())

    def _wait(self) -> bool:
        """Wait for workers and collect their outcomes. Returns False if time is up."""
        remaining = None if self._deadline is None else max(0.0, self._deadline - monotonic())
        ready = wait(list(self._job_of_worker), None if remaining is None else min(MAX_WAIT_SECONDS, remaining))
        for connection in ready:
            assert isinstance(connection, Connection)
            self._collect(connection)
        return bool(ready) or self._deadline is None or monotonic() < self._deadline

    def _collect(self, connection: Connection) -> None:
        """Record the outcome of a worker's job, and replace the worker if the job killed it."""
        job = self._job_of_worker[connection]
        try:
            error = connection.recv()
        except EOFError:
            error = "its process died"
            del self._job_of_worker[connection]
            if job is not None:  # each job is tried once, so this ends; a worker that dies while idle is not replaced
                self._start_worker()
        else:
            self._job_of_worker[connection] = None
        if job is None:
            return
        if error:
            self._errors[job] = error
        else:
            self._done += 1
        logger.info(f"{self._progress()} {job}{': ' + error if error else ''}")

    def _progress(self) -> str:
        """The number of jobs that have ended, of all, and the time that the others take at this pace."""
        ended = self._done + len(self._errors)
        left = timedelta(seconds=round((monotonic() - self._started) / ended * (self._total - ended)))
        return f"{ended}/{self._total}, {left} to go:"


def _run_worker(connection: Connection, study: str, design: Any) -> None:
    """Run the jobs that arrive, and answer each with None or its error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that every `finally` runs
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    os.chdir(study)
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:  # the parent has ended
            return
        try:
            job.run(".", design)
        except Exception as error:  # noqa: BLE001 - the error is reported with its job and stops no other job
            connection.send(f"{type(error).__name__}: {error}")
        else:
            connection.send(None)


def _exit_with_parent() -> None:
    """End the worker when its parent ends.

    A killed parent cannot end its workers, and the next run would start the trainings that they still write.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by the study"
    parent.join()
    os._exit(1)


@contextmanager
def _exclusive_lock(study: str) -> Iterator[None]:
    """Hold the lock of the study's folder: two processes would write the same trainings.

    Raises UserError if another process holds it.
    """
    with Path(study, ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{study}: another process runs this study; wait for it or use another folder") from None
        yield
