"""Converts images in a process of their own, so that an image that kills its decoder costs nothing but itself.

The process has limits of memory and CPU time, and the kernel ends it first when the machine runs out of memory. If it
dies, it is started again and the image is tried once more, alone. An image with which it dies twice is rejected, unless
the kernel killed the process with an image that takes little memory.

The whole worker can die too, for example when Ray's memory monitor ends it. So an image that takes much memory is named
in the run's storage while it is decoded. A later attempt at the shard finds the name, and rejects an image with which
two attempts died.

The threads that download do not wait for conversions: one thread passes the images to the process, in the order of
their arrival. The process stays for the next shard of this worker.
"""

import atexit
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol, TypeVar

from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.images.messages import (
    MAX_CPU_SECONDS,
    ConversionSettings,
    Converted,
    Cost,
    Done,
    Failed,
    Ready,
    SharedFile,
)

MAX_DEATHS = 2
"""Deaths with an image after which it is rejected."""

MAX_KILLS = 4
"""Kills by the kernel, with an image that takes little memory, after which the images are not to blame."""

MAX_IMAGES = 10_000
"""Images that a process converts before it is not kept for another shard."""

_AHEAD = 16
"""Images that `submit_ahead` keeps waiting."""

_REUSED_BYTES = 32 << 20
"""Blocks of memory up to this size are used again for the next image. The kernel would have to clear new ones."""

_PROGRAM = "from lotlip_data.pipeline.downloading.images.converter_process import main; main()"


Item = TypeVar("Item")


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
    """Converts images one after another, in a process. Threads may share it. Use it in a `with` statement.

    Args:
        settings: Limits, and the size and quality of stored images.
        suspects: The memory of earlier attempts.
    """

    def __init__(self, settings: ConversionSettings, suspects: Suspects | None = None) -> None:
        self._settings, self._suspects = settings, suspects or NoSuspects()
        self._process = _take_idle(settings) or _Process(settings)  # starts while the first images are fetched
        self._error: ConverterError | None = None
        self._thread = ThreadPoolExecutor(1, "converter")

    def submit(self, data: bytes) -> "Future[Converted]":
        """Convert a downloaded body once those before it are converted. The future raises what `convert` raises."""
        return self._thread.submit(self._convert, data)

    def convert(self, data: bytes) -> Converted:
        """Convert a downloaded body.

        Raises:
            FetchError: It is no image, damaged, beyond a limit, or kills the process.
            ConverterError: The process does not start, or the kernel kills it again and again.
        """
        return self.submit(data).result()

    def submit_ahead(
        self, items: Iterable[tuple[Item, bytes | None]]
    ) -> "Iterator[tuple[Item, Future[Converted] | None]]":
        """Submit images some images ahead of the consumer.

        Args:
            items: Each with its image, or with None if there is nothing to convert.

        Yields:
            Each item with the future of its image, in the order of `items`.
        """
        waiting: deque[tuple[Item, Future[Converted] | None]] = deque()
        for item, data in items:
            waiting.append((item, None if data is None else self.submit(data)))
            if len(waiting) > _AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _convert(self, data: bytes) -> Converted:
        if self._error is not None:
            raise self._error
        try:
            answer = self._answer(data)
        except ConverterError as error:
            self._error = error
            raise
        if isinstance(answer, Failed):
            reason, detail = failures.split_message(answer.message)
            raise FetchError(reason, detail)
        return answer

    def _answer(self, data: bytes) -> Converted | Failed:
        """What the process makes of a body. Starts the process again if it dies."""
        deaths = kills = 0
        while True:
            process = self._process = self._process if self._process.is_open else _Process(self._settings)
            process.wait_until_ready()
            try:
                return self._exchange(process, data)
            except _DiedError:
                status = process.close()
            except BaseException:
                process.close()  # it still waits for a message about this image
                raise
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

    def _exchange(self, process: "_Process", data: bytes) -> Converted | Failed:
        process.send_image(data)
        with contextlib.ExitStack() as stack:
            while isinstance(answer := process.receive(), Cost):
                process.announced = True
                sha256 = hashlib.sha256(data).hexdigest()
                if (deaths := self._suspects.deaths(sha256)) >= MAX_DEATHS:
                    detail = f"{deaths} attempts at its shard ended while they decoded it"
                    raise FetchError(failures.TOO_MUCH_MEMORY, f"{detail}, which takes {answer.memory >> 20} MiB")
                stack.enter_context(self._suspects.decoding(sha256))
                process.acknowledge()
        assert isinstance(answer, Done | Failed)
        return answer if isinstance(answer, Failed) else process.take_image(answer)

    def __enter__(self) -> "Converter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
        _keep_idle(self._process)


class _DiedError(Exception):
    """The process has ended."""


class _Process:
    """One `converter_process`, the socket to it, and the file for its images."""

    def __init__(self, settings: ConversionSettings) -> None:
        self.kind = _PROGRAM, settings
        """What it does. Processes of one kind can replace each other."""
        self.images = 0
        """Number of images that it has received."""
        self.announced = False
        """Whether its current image takes much memory."""
        ours, theirs = socket.socketpair()
        self._file = SharedFile()
        descriptors = [theirs.fileno(), self._file.descriptor]
        command = [sys.executable, "-c", _PROGRAM, *map(str, descriptors), json.dumps(asdict(settings))]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": str(_REUSED_BYTES),
            "MALLOC_TRIM_THRESHOLD_": str(2 * _REUSED_BYTES),
        }
        with theirs:
            self._popen = subprocess.Popen(
                command, env=environment, pass_fds=descriptors, stdin=subprocess.DEVNULL, process_group=0
            )
        self._connection: Any = Connection(ours.detach())
        self.is_ready = False

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._popen.pid

    @property
    def is_open(self) -> bool:
        """Whether `close` has not been called."""
        return not self._connection.closed

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._popen.poll() is None

    def wait_until_ready(self) -> None:
        """Wait until it has started. Raises ConverterError if it does not."""
        if self.is_ready:
            return
        try:
            ready = self.receive()
        except _DiedError:
            raise ConverterError(f"the process that decodes images does not start (status {self.close()})") from None
        assert isinstance(ready, Ready)
        self.is_ready = True

    def send_image(self, data: bytes) -> None:
        """Send an image. Raises _DiedError."""
        self.announced = False
        self.images += 1
        self._file.put(data)
        self._send(len(data).to_bytes(8, "big"))

    def take_image(self, done: Done) -> Converted:
        """The converted image that a message announces."""
        return replace(done.image, body=self._file.take(done.size))

    def acknowledge(self) -> None:
        """Tell the process to go on after a `Cost`. Raises _DiedError."""
        self._send(b"")

    def _send(self, data: bytes) -> None:
        try:
            self._connection.send_bytes(data)
        except ConnectionError:
            raise _DiedError from None

    def receive(self) -> object:
        """The next message of the process. Raises _DiedError."""
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            raise _DiedError from None

    def close(self) -> int:
        """End the process. Returns its status, which is negative for a signal."""
        if self.is_open:
            self._connection.close()
            self._file.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(timeout=5)
        self._popen.kill()
        return self._popen.wait()


_idle: list[_Process] = []
"""The process that the last `Converter` has left for the next one: at most one."""


def _take_idle(settings: ConversionSettings) -> _Process | None:
    """The idle process, if it is of the kind that is needed."""
    try:
        process = _idle.pop()
    except IndexError:
        return None
    if process.kind == (_PROGRAM, settings) and process.is_alive:
        return process
    process.close()
    return None


def _keep_idle(process: _Process) -> None:
    """Leave a process to the next `Converter`. A process that has converted many images ends: decoders may leak."""
    if process.is_open and process.is_ready and process.images < MAX_IMAGES and not _idle:
        _idle.append(process)
    elif process.is_open:
        process.close()


def _end_idle() -> None:
    while _idle:
        _idle.pop().close()


atexit.register(_end_idle)
os.register_at_fork(after_in_child=_idle.clear)  # two processes cannot share a socket
