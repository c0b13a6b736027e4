"""The images of a shard's tar by their row, without reading the whole tar.

Its members' headers are read only as far as a row needs, so the first page of a shard of a gigabyte costs little, also
from S3; where an image lies is 16 bytes, and the last few tars stay open.
"""

import array
import functools
import tarfile
import threading
from typing import IO

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.schema import IMAGE_EXTENSION

OPEN = 8
"""Tars that stay open."""
MOST_BYTES = 100_000_000
"""An image that claims to be larger is not read."""
_JPEG = b"\xff\xd8\xff"


class NoImage(UserError):
    """A row without an image that can be shown; the message says why."""


def damage(url: str, expected: int) -> str | None:
    """What is wrong with a tar of `expected` bytes, as far as one question to the storage tells; None for nothing."""
    try:
        found = storage.size(url)
    except (OSError, UserError) as error:
        return f"{url}: cannot be read ({error}). Run `lotlip-data verify` on the run."
    if found is None:
        return f"{url}: is missing, so none of its images can be shown. Run `lotlip-data verify` on the run."
    if found != expected:
        told = f"has {found:,} bytes in place of {expected:,}, so images of it may be lost"
        return f"{url}: {told}. Run `lotlip-data verify` on the run."
    return None


class Tars:
    """The images of any tars, by their URL and row."""

    def __init__(self, most: int = OPEN) -> None:
        self._open = functools.lru_cache(most)(_Tar)
        self._turn = threading.Lock()

    def image(self, url: str, row: int) -> bytes:
        """The JPEG of a row. Raises NoImage where there is none."""
        with self._turn:  # one tar is not opened twice by the images of one page
            tar = self._open(url)
        return tar.image(row)


class _Tar:
    """One tar, open as long as it is among the last few."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._turn = threading.Lock()
        self._where = array.array("Q")  # offset and size of each image
        self._stream: IO[bytes] | None = None
        self._tar: tarfile.TarFile | None = None

    def image(self, row: int) -> bytes:
        with self._turn:
            try:
                content = self._read(row)
            except NoImage:
                raise
            except (OSError, EOFError, ValueError, tarfile.TarError) as error:
                self._tar = None  # the next image begins anew
                raise NoImage(f"{self._url}: cannot be read ({error}). Run `lotlip-data verify` on the run.") from error
        if not content.startswith(_JPEG):
            raise NoImage(f"{self._url}: image {row} is not a JPEG")
        return content

    def _read(self, row: int) -> bytes:
        if self._stream is None or self._tar is None:
            self._stream = storage.open_read(self._url)
            self._tar = tarfile.open(fileobj=self._stream, mode="r:")  # noqa: SIM115 - as long as this object
            self._where = array.array("Q")
        while len(self._where) <= 2 * row:
            member = self._tar.next()
            if member is None:
                raise NoImage(f"{self._url}: has no image {row}")
            if member.isfile() and member.name.endswith(f".{IMAGE_EXTENSION}"):
                self._where.extend((member.offset_data, member.size))
            self._tar.members = []  # type: ignore[attr-defined]  # it keeps every header otherwise
        offset, size = self._where[2 * row : 2 * row + 2]
        if size > MOST_BYTES:
            raise NoImage(f"{self._url}: image {row} claims {size:,} bytes")
        self._stream.seek(offset)
        content = self._stream.read(size)
        if len(content) < size:
            raise NoImage(f"{self._url}: ends within image {row}. Run `lotlip-data verify` on the run.")
        return content
