"""Lists and reads the files of a folder that nobody vouches for: links, devices and endless files cannot do harm.

A link that leads out of the folder is followed only if the source says so; each folder is listed once, so links in a
circle end. Names that begin with a dot are skipped, as `datasets` does it. On an object store there are no links.
"""

import errno
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lotlip_data.manifests import storage
from lotlip_data.pipeline.existing_images.rows import (
    LINK_OUT,
    NO_FILE,
    NOT_A_FILE,
    NOT_READABLE,
    TOO_LARGE,
    UNSAFE_NAME,
    Problem,
)


@dataclass(frozen=True)
class Folder:
    """A folder of images."""

    url: str
    follow_links: bool

    @functools.cached_property
    def is_local(self) -> bool:
        return storage.is_local(self.url)

    @functools.cached_property
    def _root(self) -> str:
        return os.path.realpath(storage.normalise(self.url))

    def names(self, remark: Callable[[str], None]) -> Iterator[str]:
        """The paths of all files below the folder, relative to it, in no order.

        Args:
            remark: Receives a sentence about each link to a folder that is not followed.
        """
        if self.is_local:
            root = Path(storage.normalise(self.url))
            yield from self._local_names(root, "", {_identity(root.stat())}, remark)
        else:
            yield from (name for name in storage.list_below(self.url) if not _is_hidden(name))

    def _local_names(
        self, path: Path, prefix: str, listed: set[tuple[int, int]], remark: Callable[[str], None]
    ) -> Iterator[str]:
        folders = []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    yield prefix + entry.name
                elif not entry.is_symlink():
                    folders.append(entry.name)
                elif self._leads_out(entry.path):
                    if self.follow_links:
                        folders.append(entry.name)
                    else:
                        remark(f"{entry.path}: leads out of the folder; set `follow_links: true` to read it")
        for name in sorted(folders):
            identity = _identity((path / name).stat())
            if identity not in listed:
                listed.add(identity)
                yield from self._local_names(path / name, f"{prefix}{name}/", listed, remark)

    def read(self, name: str, max_bytes: int) -> bytes | Problem:
        """The content of a file. Raises OSError if the storage fails."""
        return self._read_local(name, max_bytes) if self.is_local else self._read_remote(name, max_bytes)

    def _read_local(self, name: str, max_bytes: int) -> bytes | Problem:
        path = storage.join(storage.normalise(self.url), name)
        if not self.follow_links and self._leads_out(path):
            return Problem(LINK_OUT, "set `follow_links: true` to read it")
        try:
            if storage.local_kind(path) != "file":  # a pipe would make the reader wait
                return Problem(NOT_A_FILE, "a folder, a device, a pipe or a socket")
            with open(path, "rb", opener=_open_without_waiting) as stream:
                size = os.fstat(stream.fileno()).st_size
                content = stream.read(min(size, max_bytes) + 1)
                return _bounded(content + stream.read(max_bytes + 1 - len(content)), max_bytes)
        except (FileNotFoundError, NotADirectoryError):
            return Problem(NO_FILE)
        except PermissionError:
            return Problem(NOT_READABLE, "this user may not read it")
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                return Problem(NO_FILE, str(error.strerror))
            raise

    def _read_remote(self, name: str, max_bytes: int) -> bytes | Problem:
        if "::" in name or "://" in name:  # fsspec takes it for another place
            return Problem(UNSAFE_NAME, "the name looks like a URL")
        try:
            with storage.open_read(storage.join(self.url, name)) as stream:
                return _bounded(stream.read(max_bytes + 1), max_bytes)
        except FileNotFoundError:
            return Problem(NO_FILE)

    def _leads_out(self, path: str) -> bool:
        return os.path.commonpath([self._root, os.path.realpath(path)]) != self._root


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _bounded(content: bytes, max_bytes: int) -> bytes | Problem:
    return content if len(content) <= max_bytes else Problem(TOO_LARGE, f"more than {max_bytes:,} bytes")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
