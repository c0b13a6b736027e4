"""Converts images in a process of their own, so that an image that kills its decoder costs nothing but itself.

The process has limits of memory and CPU time, and the kernel ends it first when the machine runs out of memory. If it
dies, it is started again and the image is tried once more, alone. An image with which it dies twice is rejected, unless
the kernel killed the process with an image that takes little memory.

The whole worker can die too, for example when Ray's memory monitor ends it. So an image that takes much memory is named
in the run's storage while it is decoded. A later attempt at the shard finds the name, and rejects an image with which
two attempts died.
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.images.messages import (
    MAX_CPU_SECONDS,
    ConversionSettings,
    Converted,
    Cost,
    Failed,
    Ready,
)

MAX_DEATHS = 2
"""Deaths with an image after which it is rejected."""

MAX_KILLS = 4
"""Kills by the kernel, with an image that takes little memory, after which the images are not to blame."""

_PROGRAM = "from lotlip_data.pipeline.downloading.images.converter_process import main; main()"


class ConverterError(RuntimeError):
    """The process does not start, or does not live; the images are not to blame."""


class Suspects(Protocol):
    """Remembers which images are being decoded, beyond the death of this process."""

    def deaths(self, sha256: str) -> int:
        """Number of attempts that died while they decoded the image."""

    def decoding(self, sha256: str) -> contextlib.AbstractContextManager[None]:
        """Remember the image while the block runs."""


class NoSuspects:
    """Remembers nothing."""

    def deaths(self, sha256: str) -> int:
        """No attempt has died."""
        return 0

    def decoding(self, sha256: str) -> contextlib.AbstractContextManager[None]:
        """Do nothing."""
        return contextlib.nullcontext()


class Converter:
    """A process that converts images. One thread at a time may use it. Use it in a `with` statement.

    Args:
        settings: Limits, and the size and quality of stored images.
        suspects: The memory of earlier attempts.
    """

    def __init__(self, settings: ConversionSettings, suspects: Suspects | None = None) -> None:
        self._settings, self._suspects = settings, suspects or NoSuspects()
        self._process: _Process | None = _Process(settings)  # starts while the first images are fetched

    def convert(self, data: bytes) -> Converted:
        """Convert a downloaded body.

        Raises:
            FetchError: It is no image, damaged, beyond a limit, or kills the process.
            ConverterError: The process does not start, or the kernel kills it again and again.
        """
        deaths = kills = 0
        while True:
            process = self._process = self._process or _Process(self._settings)
            process.wait_until_ready()
            try:
                return self._exchange(process, data)
            except (EOFError, ConnectionError):
                self._process = None
                status = process.close()
            if status == -signal.SIGXCPU:
                raise FetchError(failures.UNDECODABLE, f"takes more than {MAX_CPU_SECONDS} seconds of CPU time")
            if status == -signal.SIGKILL and not process.announced:
                kills += 1  # by the kernel, because others take the memory
                if kills > MAX_KILLS:
                    raise ConverterError("the process that decodes images is killed again and again: memory is short")
                continue
            deaths += 1
            if deaths == MAX_DEATHS:
                reason = failures.TOO_MUCH_MEMORY if status == -signal.SIGKILL else failures.UNDECODABLE
                raise FetchError(reason, f"ended the process that decodes it {deaths} times, last with status {status}")

    def _exchange(self, process: "_Process", data: bytes) -> Converted:
        process.announced = False
        process.connection.send_bytes(data)
        with contextlib.ExitStack() as stack:
            while isinstance(answer := process.connection.recv(), Cost):
                process.announced = True
                sha256 = hashlib.sha256(data).hexdigest()
                if (deaths := self._suspects.deaths(sha256)) >= MAX_DEATHS:
                    process.close()
                    self._process = None
                    detail = f"{deaths} attempts at its shard ended while they decoded it"
                    raise FetchError(failures.TOO_MUCH_MEMORY, f"{detail}, which takes {answer.memory >> 20} MiB")
                stack.enter_context(self._suspects.decoding(sha256))
                process.connection.send_bytes(b"")
        if isinstance(answer, Failed):
            reason, detail = failures.split_message(answer.message)
            raise FetchError(reason, detail)
        assert isinstance(answer, Converted)
        return answer

    def __enter__(self) -> "Converter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


class _Process:
    """One `converter_process` and the socket to it."""

    def __init__(self, settings: ConversionSettings) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(asdict(settings))]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
        }
        with theirs:
            self._popen = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.connection: Any = Connection(ours.detach())
        self._is_ready = False
        self.announced = False
        """Whether the image takes much memory."""

    def wait_until_ready(self) -> None:
        """Wait until it has started. Raises ConverterError if it does not."""
        if self._is_ready:
            return
        try:
            ready = self.connection.recv()
        except (EOFError, ConnectionError):
            raise ConverterError(f"the process that decodes images does not start (status {self.close()})") from None
        assert isinstance(ready, Ready)
        self._is_ready = True

    def close(self) -> int:
        """End the process. Returns its status, which is negative for a signal."""
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(timeout=5)
        self._popen.kill()
        return self._popen.wait()
