"""Local scratch folders that are removed even if their process was killed.

A process locks its folder as long as it lives. The next process that needs a scratch folder removes unlocked ones.
"""

import fcntl
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from lotlip_data.manifests.storage_retry import disk_error

PREFIX = "lotlip-data-"
_LOCK = ".lock"


@contextmanager
def scratch_folder(purpose: str) -> Iterator[pathlib.Path]:
    """An empty folder in the system's temporary folder (`TMPDIR`), which is removed at the end.

    Raises:
        DiskError: The disk of the temporary folder is full or read-only, also if the block meets this error.
    """
    _remove_abandoned(purpose)
    try:
        with _locked_folder(purpose) as folder:
            yield folder
    except OSError as error:
        if refused := disk_error(error, f"{tempfile.gettempdir()} (set TMPDIR to use another folder)", denials=False):
            raise refused from error
        raise


@contextmanager
def _locked_folder(purpose: str) -> Iterator[pathlib.Path]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
    fresh = folder / f"{_LOCK}.new"
    try:
        with open(fresh, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fresh.rename(folder / _LOCK)  # another process sees the lock file only when it is locked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(purpose: str) -> None:
    for lock_file in pathlib.Path(tempfile.gettempdir()).glob(f"{PREFIX}{purpose}-*/{_LOCK}"):
        try:
            with open(lock_file, "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.parent, ignore_errors=True)
        except OSError:  # locked by a living process, another user's, or just removed by another process
            continue
