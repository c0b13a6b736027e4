"""The fsspec file system `faulty://PATH`: a local folder that behaves like an unreliable object store.

The file `storage` in the folder that LOTLIP_FAULTS names holds a JSON object: `rate`, the share of operations that fail
like a lost connection, and `full`, whether writes fail for lack of space. At any rate, at most FAILURES of RECENT
consecutive operations of a thread fail, so that retries, as `manifests/storage_retry.py` makes them, succeed.
"""

import errno
import json
import os
import random
import threading
from collections import deque
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

RECENT, FAILURES = 16, 2


class _History(threading.local):
    """Whether each of the thread's last operations failed."""

    def __init__(self) -> None:
        self.failed: deque[bool] = deque(maxlen=RECENT - 1)


_history = _History()


class FaultyFileSystem(AbstractFileSystem):
    protocol = "faulty"
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._disk = LocalFileSystem(auto_mkdir=True)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("faulty://").rstrip("/")

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self._fail()
        return self._disk.ls(self._strip_protocol(path), detail=detail)

    def info(self, path: str, **options: Any) -> Any:
        self._fail()
        return self._disk.info(self._strip_protocol(path))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        self._fail()
        return self._disk.cat_file(self._strip_protocol(path), start, end)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Write the whole file or nothing, as an object store does."""
        self._fail(writes=True)
        target = Path(self._strip_protocol(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".tmp-{os.urandom(8).hex()}")
        scratch.write_bytes(value)
        try:
            if mode == "create":
                os.link(scratch, target)
            else:
                scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
        self._fail()  # the write is done, and its answer is lost

    def rm(self, path: str, recursive: bool = False, maxdepth: Any = None) -> None:
        self._fail()
        self._disk.rm(self._strip_protocol(path), recursive=recursive)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self._fail()
        return self._disk.open(path, mode)

    def _fail(self, writes: bool = False) -> None:
        try:
            faults = json.loads(Path(os.environ["LOTLIP_FAULTS"], "storage").read_text())
        except (FileNotFoundError, ValueError):
            return
        if writes and faults.get("full"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fails = random.random() < faults.get("rate", 0.0) and sum(_history.failed) < FAILURES
        _history.failed.append(fails)
        if fails:
            raise OSError(errno.EIO, "the connection was reset")
