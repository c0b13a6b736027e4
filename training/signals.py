"""A training that is told to stop, by Ctrl-C or by the signal that a cluster sends before it takes a machine back."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """While it is entered, SIGINT and SIGTERM wait for `heed`: `asked` is the one that came, and a step stays whole.

    A second Ctrl-C does not wait; within ECHO_SECONDS it is the first one's echo, from what this process runs in. A
    signal that is ignored stays ignored, and outside the main thread, where Python takes no signals, nothing changes.
    """

    ECHO_SECONDS = 1.0

    def __init__(self) -> None:
        self.asked: int | None = None
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            # None: a handler that Python does not know, so that it could not be put back
            self._before = {number: one for number, one in handlers.items() if one not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._keep)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked, self._asked_at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._asked_at >= self.ECHO_SECONDS:
            self.asked = None
            self.__exit__(None, None, None)
            signal.raise_signal(number)

    def heed(self) -> None:
        """What the signal would have done, had it not waited; once, and nothing where none came. Not while entered."""
        asked, self.asked = self.asked, None
        if asked is not None:
            signal.raise_signal(asked)
