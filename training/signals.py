"""Defers Ctrl-C, and the signal that a cluster sends before it reclaims a machine, until the step under way ends."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """While entered, SIGINT and SIGTERM are recorded in `received` instead of handled. `reraise` handles them later.

    A second Ctrl-C is handled at once, unless it comes within ECHO_SECONDS: then it is the first one again, forwarded
    by a parent process. An ignored signal stays ignored. Outside the main thread, where Python delivers no signals,
    entering does nothing.
    """

    ECHO_SECONDS = 1.0

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            # None is a handler that Python did not install and could not restore.
            self._handlers = {
                number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)
            }
            for number in self._handlers:
                signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._received_at >= self.ECHO_SECONDS:
            self.received = None
            self.__exit__(None, None, None)
            signal.raise_signal(number)

    def reraise(self) -> None:
        """Raise the recorded signal again, once. Does nothing if there was none. Call it after the context ends."""
        received, self.received = self.received, None
        if received is not None:
            signal.raise_signal(received)
