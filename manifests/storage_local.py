"""Writes on a local disk: scratch files that reach the disk before they get their name, and exclusive creation.

An object is written to a scratch file beside it and then linked: a hard link fails if the object exists.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from lotlip_data.manifests.storage_retry import StorageError


@contextlib.contextmanager
def scratch_beside(path: str) -> Iterator[str]:
    """A path for a scratch file in the folder of `path`. The file is removed at the end if it still exists."""
    folder = pathlib.Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".tmp-{uuid.uuid4().hex}"
    try:
        yield str(scratch)
    finally:
        scratch.unlink(missing_ok=True)


def write_durably(path: str, data: bytes) -> None:
    """Write a new file, and wait until it is on the disk."""
    with open(path, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def place_durably(local: str, path: str, move: bool = False) -> None:
    """Copy the file `local` to `path`, and wait until it is on the disk.

    With `move`, make a hard link instead if both are on one disk.
    """
    if not (move and _is_linked(local, path)):
        with open(local, "rb") as source, open(path, "xb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    with open(path, "rb") as placed:
        os.fsync(placed.fileno())


def _is_linked(local: str, path: str) -> bool:
    try:
        os.link(local, path)
    except OSError:  # another disk, or a file system without hard links
        return False
    return True


def link(scratch: str, path: str) -> bool:
    """Give a scratch file its name. Returns False if the object exists.

    Raises:
        StorageError: The file system has no hard links.
        OSError: Other errors.
    """
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not _has_hard_links(pathlib.Path(path).parent):
            raise StorageError(
                f"{path}: this file system has no hard links, so a result cannot be committed exclusively. "
                "Put the run on another disk, or on S3."
            ) from error
        raise
    return True


def _has_hard_links(folder: pathlib.Path) -> bool:
    """Whether a file of this folder can be linked. File systems that cannot do it answer with many different errors."""
    source, target = (folder / f".tmp-{uuid.uuid4().hex}" for _ in range(2))
    try:
        source.write_bytes(b"")
    except OSError:
        return True  # the folder has another trouble, which the first error is about
    try:
        os.link(source, target)
    except OSError:
        return False
    finally:
        for file in (source, target):
            file.unlink(missing_ok=True)
    return True
