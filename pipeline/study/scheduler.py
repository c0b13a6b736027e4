"""Runs what the study takes, in processes side by side, until all of it is done or time is up.

Each process has one thread and takes one task after another. A task that is stopped, by the clock, Ctrl-C or a power
cut, goes on next time; what is done is a file that is created once, so nothing is done twice.
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
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study.experiments import Design
from lotlip_data.pipeline.study.jobs import Data, Training, needs

logger = logging.getLogger(__name__)

Task = Data | Training
LONGEST_WAIT = 3600.0
"""Seconds; the operating system refuses waits of months."""


@dataclass(frozen=True)
class Ran:
    """How many tasks were done, how many are left, and what failed, with its reason."""

    done: int
    left: int
    failed: tuple[str, ...]


def run(study: str, design: Design, tasks: Sequence[Task], processes: int, seconds: float | None) -> Ran:
    """Do the tasks that are not done yet. Raises UserError where another process is at this study already."""
    Path(study).mkdir(parents=True, exist_ok=True)
    waiting = [task for task in tasks if not task.is_done(study, design)]
    if not waiting or seconds == 0:
        return Ran(0, len(waiting), ())
    deadline = None if seconds is None else monotonic() + seconds
    with _alone(study):
        return _Runner(study, design, waiting, deadline).run(min(processes, len(waiting)))


class _Runner:
    """The parent of the processes: who has which task, and what is left."""

    def __init__(self, study: str, design: Design, waiting: list[Task], deadline: float | None) -> None:
        self._study, self._design, self._waiting, self._deadline = study, design, waiting, deadline
        self._all, self._done, self._failed = len(waiting), 0, dict[Task, str]()
        self._at: dict[Connection, Task | None] = {}
        self._workers: list[BaseProcess] = []

    def run(self, processes: int) -> Ran:
        try:
            for _ in range(processes):
                self._start()
            while self._hand_out() and self._listen():
                pass
        finally:
            for worker in self._workers:
                worker.terminate()
            for worker in self._workers:
                worker.join()
        return Ran(self._done, self._all - self._done, tuple(f"{task}: {why}" for task, why in self._failed.items()))

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(theirs, self._study, self._design))
        worker.start()
        theirs.close()  # so that a worker's death is an end of file here
        self._workers.append(worker)
        self._at[ours] = None

    def _hand_out(self) -> bool:
        """Give the idle something to do; False where nobody has anything."""
        for connection, task in self._at.items():
            if task is None and (found := next(filter(self._is_ready, self._waiting), None)) is not None:
                self._waiting.remove(found)
                self._at[connection] = found
                connection.send(found)
        return any(self._at.values())

    def _is_ready(self, task: Task) -> bool:
        first = needs(task)
        return first is None or first.is_done(self._study, self._design)

    def _listen(self) -> bool:
        """Take what the next one says that has finished; False where time is up."""
        left = None if self._deadline is None else min(LONGEST_WAIT, max(0.0, self._deadline - monotonic()))
        heard = wait(list(self._at), left)
        for connection in heard:
            assert isinstance(connection, Connection)
            self._take(connection)
        return bool(heard) or self._deadline is None or monotonic() < self._deadline

    def _take(self, connection: Connection) -> None:
        task = self._at[connection]
        try:
            error = connection.recv()
        except EOFError:
            error = "its process died"
            del self._at[connection]
            if task is not None:  # each task is tried once, so this ends; a worker that dies by itself is not replaced
                self._start()
        else:
            self._at[connection] = None
        if task is None:
            return
        if error:
            self._failed[task] = error
        else:
            self._done += 1
        logger.info(f"{self._done + len(self._failed)}/{self._all} {task}{': ' + error if error else ''}")


def _work(connection: Connection, study: str, design: Design) -> None:
    """A worker: does what comes, and says None, or why it could not be done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # through every `finally`
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:  # the parent is gone
            return
        try:
            task.do(study, design)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this task's, and told
            connection.send(f"{type(error).__name__}: {error}")
        else:
            connection.send(None)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, and the next one would start at the same trainings."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by the study"
    parent.join()
    os._exit(1)


@contextmanager
def _alone(study: str) -> Iterator[None]:
    """While held, no other process runs this study: two would write the same trainings."""
    with Path(study, ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{study}: another process runs this study; wait for it, or name another folder") from None
        yield
