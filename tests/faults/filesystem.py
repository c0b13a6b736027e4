"""The file system `faulty://PATH`: a folder of this machine that behaves like an object store in bad health.

ROOT is the environment variable LOTLIP_FAULTS; a file ROOT/storage holds a JSON object: `rate`, the share of operations
that fail as a network does, and `full`, whether there is no space left to write to. Whatever the rate, of RECENT
operations in a row of one thread at most FAILURES fail: what is asked again, as `manifests/storage_retry.py` does it,
comes through.
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


class _Past(threading.local):
    """Of a thread's last operations, whether they failed."""

    def __init__(self) -> None:
        self.failed: deque[bool] = deque(maxlen=RECENT - 1)


_past = _Past()


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
        """Whole or not at all, as an object store does it."""
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
        self._fail()  # done, and the answer lost

    def rm(self, path: str, recursive: bool = False, maxdepth: Any = None) -> None:
        self._fail()
        self._disk.rm(self._strip_protocol(path), recursive=recursive)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self._fail()
        return self._disk.open(path, mode)

    def _fail(self, writes: bool = False) -> None:
        try:
            told = json.loads(Path(os.environ["LOTLIP_FAULTS"], "storage").read_text())
        except (FileNotFoundError, ValueError):
            return
        if writes and told.get("full"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fails = random.random() < told.get("rate", 0.0) and sum(_past.failed) < FAILURES
        _past.failed.append(fails)
        if fails:
            raise OSError(errno.EIO, "the connection was reset")
