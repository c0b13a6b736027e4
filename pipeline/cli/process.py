"""The process around a command: its signals and its standard streams."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

INTERRUPTED = 130
"""Exit code after a signal."""


class Stop:
    """What SIGTERM and SIGINT do: they stop the command as Ctrl-C does, and end the process once `finishing` is set."""

    def __init__(self) -> None:
        self.finishing = False
        """Set while the command ends: another signal then ends the process at once."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.finishing:
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """Handle SIGTERM and SIGINT by a `Stop` while this is entered, except one that is ignored, as after `nohup`.

    Another thread than the main one has no signals.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handled = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    earlier = {number: signal.signal(number, stop) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


class Stream:
    """A standard stream that may fail: a full disk, or a reader that has gone, does not end the command.

    Attributes:
        failure: The first error of writing, or None.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        with self._tolerated():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._tolerated():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except UnicodeError:
            raise
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.failure = self.failure or error

    def end(self) -> None:
        """Drop what could not be written, so that Python does not complain when it ends."""
        self.flush()
        if self.failure:
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Let standard output and error fail without a consequence for the command while this is entered."""
    _open_closed_streams()
    earlier = sys.stdout, sys.stderr
    out, err = (Stream(stream) for stream in earlier)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = earlier
        out.end()
        err.end()


def _open_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed: otherwise the next file gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - it lives as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
