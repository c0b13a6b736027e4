"""Local folders for work under way, which vanish even where their process was killed.

A folder is locked while its process lives; the next process that needs one removes those that nobody holds.
"""

import fcntl
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

PREFIX = "lotlip-data-"
_LOCK = ".lock"


@contextmanager
def scratch_folder(purpose: str) -> Iterator[pathlib.Path]:
    """An empty folder under the system's temporary folder (`TMPDIR`), removed at the end."""
    _remove_abandoned(purpose)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
    fresh = folder / f"{_LOCK}.new"
    with open(fresh, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fresh.rename(folder / _LOCK)  # a neighbour sees the lock only when it is held
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(purpose: str) -> None:
    for lock_file in pathlib.Path(tempfile.gettempdir()).glob(f"{PREFIX}{purpose}-*/{_LOCK}"):
        try:
            with open(lock_file, "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.parent, ignore_errors=True)
        except OSError:  # held by a living process, another user's, or just removed by a neighbour
            continue
