"""Keeps the last output of this process and of the processes that it starts, which has the cause of a failed start.

An engine's process reports to the process that started it only that it failed; the cause is in its output.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from types import TracebackType

KEPT_BYTES = 256 << 10

_LOG_PREFIX = re.compile(r"^(?:\([^)]*\)\s*)*(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^\]]*\] ?)?")
"""What vLLM puts before every line: the process, then level, time and place."""
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt|Failure|Timeout)\b(?:: .*)?$")


class ProcessOutput:
    """While entered, standard output and error go through a pipe: on to where they went, and into `text`.

    Processes that are started meanwhile keep writing to the pipe, so its other end is read until the last one ends.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._lock = threading.Lock()

    def __enter__(self) -> "ProcessOutput":
        self._saved = [os.dup(number) for number in (1, 2)]
        reader, writer = os.pipe()
        self._thread = threading.Thread(target=self._pump, args=(reader, os.dup(2)), name="engine-output", daemon=True)
        self._thread.start()
        for number in (1, 2):
            os.dup2(writer, number, inheritable=True)
        os.close(writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, number, inheritable=True)
            os.close(saved)

    def text(self, seconds: float = 1.0) -> str:
        """The last output. Waits at most `seconds` for the processes to end, because their last words matter most."""
        self._thread.join(seconds)
        with self._lock:
            return self._kept.decode(errors="replace")

    def _pump(self, reader: int, target: int) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(reader, 1 << 16):
                with self._lock:
                    self._kept += chunk
                    del self._kept[:-KEPT_BYTES]
                with contextlib.suppress(OSError):  # nobody reads it any more; the processes must not notice
                    os.write(target, chunk)
        os.close(reader)
        os.close(target)


def root_cause(text: str) -> str | None:
    """The exception that ended a process, from its output: its type and message on one line; None if there is none.

    It is the last exception of the first traceback that is not about another process having failed.
    """
    causes = [line for line in _exceptions(text) if "root cause above" not in line and "Engine core" not in line]
    return causes[-1] if causes else None


def _exceptions(text: str) -> Iterator[str]:
    """The last line of each traceback, with the lines of the message that follow it."""
    message: list[str] = []
    for line in [*(_LOG_PREFIX.sub("", line) for line in text.splitlines()), ""]:
        if _EXCEPTION.match(line):
            if message:
                yield " ".join(message)
            message = [line.strip()]
        elif message and line.strip() and not line.startswith(("Traceback", "During handling", "The above")):
            message.append(line.strip())
        elif message:
            yield " ".join(message)
            message = []
