"""Stages that run at the same time, each in a thread of this process, and how they are stopped.

The main thread waits for them, so that signals reach it. A stage is stopped at its next call of `raise_if_stopped` or
`pause`: loops over Ray tasks and actors make one about every second. It then ends as it does after Ctrl-C.
"""

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Generic, TypeVar

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core.ray_cluster import check_cluster

Result = TypeVar("Result")

WAIT_SECONDS = 0.2
"""Interval at which the main thread looks at its stages."""
STOP_SECONDS = 60.0
"""Time for stopped stages to end: longer than actors have to save finished captions."""

_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)
"""Set when the stage of this thread shall end."""


class Stopped(KeyboardInterrupt):
    """The stage of this thread is stopped: the user has interrupted the command, or another stage cannot go on."""


def raise_if_stopped() -> None:
    """Raise Stopped if the stage of this thread is stopped. Does nothing outside `StageThreads`."""
    if (stop := _stop.get()) and stop.is_set():
        raise Stopped


def pause(seconds: float) -> None:
    """Sleep, and raise Stopped as soon as the stage of this thread is stopped."""
    if stop := _stop.get():
        stop.wait(seconds)
    else:
        time.sleep(seconds)
    raise_if_stopped()


class StageThreads(Generic[Result]):
    """Stages that run at the same time. A UserError ends its stage alone; any other exception stops all of them.

    Use it in a `with` statement, at whose end no stage runs any more.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._ended: dict[str, threading.Event] = {}
        """By stage, whether it has ended. A thread itself does not know: before Python 3.13, one that a signal
        interrupts in `Thread.join` takes the other thread for ended."""
        self._results: dict[str, Result | UserError] = {}
        self._error: BaseException | None = None

    def __enter__(self) -> "StageThreads[Result]":
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the stages that still run, and wait for them for STOP_SECONDS at most."""
        self._stop.set()
        deadline = time.monotonic() + STOP_SECONDS
        while self._any_running() and time.monotonic() < deadline:
            check_cluster()
            self._wait()

    def start(self, name: str, stage: Callable[[], Result]) -> None:
        """Call `stage` in a new thread, with the context variables of this one."""
        token = _stop.set(self._stop)
        context = copy_context()
        _stop.reset(token)
        self._ended[name] = threading.Event()
        threading.Thread(target=context.run, args=(self._run, name, stage), name=name, daemon=True).start()

    def _run(self, name: str, stage: Callable[[], Result]) -> None:
        try:
            self._results[name] = stage()
        except UserError as error:
            self._results[name] = error
        except BaseException as error:  # noqa: BLE001 - `results` raises it in the main thread
            self._error = self._error or error
            self._stop.set()
        finally:
            self._ended[name].set()

    def has_ended(self, name: str) -> bool:
        """Whether a stage has ended, in whichever way."""
        return self._ended[name].is_set()

    def results(self) -> dict[str, Result | UserError]:
        """Wait for all stages. Returns what each has returned, or its UserError.

        Raises:
            BaseException: What has stopped the stages.
        """
        while self._any_running() and not self._error:
            self._wait()
        if self._error:
            raise self._error
        return self._results

    def _any_running(self) -> bool:
        return not all(ended.is_set() for ended in self._ended.values())

    def _wait(self) -> None:
        """Wait a moment for the first stage that has not ended."""
        for ended in self._ended.values():
            if not ended.is_set():
                ended.wait(WAIT_SECONDS)
                return
