"""The images of a shard's tar by row, without reading the whole tar.

Headers are read only up to the requested row, so the first page of a shard of one gigabyte is cheap, also from S3. The
index takes 16 bytes per image. The most recently used tars stay open.
"""

import array
import functools
import tarfile
import threading
from typing import IO

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.schema import IMAGE_EXTENSION

OPEN_TARS = 8
"""Number of tars that stay open."""
MAX_IMAGE_BYTES = 100_000_000
"""An image whose header claims more is not read."""
_JPEG_MAGIC = b"\xff\xd8\xff"


class ImageUnavailableError(UserError):
    """An image that cannot be shown; the message says why."""


def tar_problem(url: str, expected: int) -> str | None:
    """Return what one storage request shows to be wrong with a tar of `expected` bytes, or None."""
    try:
        size = storage.size(url)
    except (OSError, UserError) as error:
        return f"{url}: cannot be read ({error}). Run `lotlip-data verify` on the run."
    if size is None:
        return f"{url}: is missing, so its images cannot be shown. Run `lotlip-data verify` on the run."
    if size != expected:
        problem = f"has {size:,} bytes instead of {expected:,}, so some of its images may be lost"
        return f"{url}: {problem}. Run `lotlip-data verify` on the run."
    return None


class TarImages:
    """Reads images by the URL of their tar and their row; keeps the last `open_tars` tars open."""

    def __init__(self, open_tars: int = OPEN_TARS) -> None:
        self._open = functools.lru_cache(open_tars)(_Tar)
        self._lock = threading.Lock()

    def image(self, url: str, row: int) -> bytes:
        """Return the JPEG of a row. Raises ImageUnavailableError if there is none."""
        with self._lock:  # so that the parallel requests of one page open a tar once
            tar = self._open(url)
        return tar.image(row)


class _Tar:
    """One tar, open while it is among the most recently used."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._index = array.array("Q")  # offset and size of each image
        self._stream: IO[bytes] | None = None
        self._tar: tarfile.TarFile | None = None

    def image(self, row: int) -> bytes:
        with self._lock:
            try:
                content = self._read(row)
            except ImageUnavailableError:
                raise
            except (OSError, EOFError, ValueError, tarfile.TarError) as error:
                self._tar = None  # the next request opens the tar again
                raise ImageUnavailableError(
                    f"{self._url}: cannot be read ({error}). Run `lotlip-data verify` on the run."
                ) from error
        if not content.startswith(_JPEG_MAGIC):
            raise ImageUnavailableError(f"{self._url}: image {row} is not a JPEG")
        return content

    def _read(self, row: int) -> bytes:
        if self._stream is None or self._tar is None:
            self._stream = storage.open_read(self._url)
            self._tar = tarfile.open(fileobj=self._stream, mode="r:")  # noqa: SIM115 - open as long as this object
            self._index = array.array("Q")
        while len(self._index) <= 2 * row:
            member = self._tar.next()
            if member is None:
                raise ImageUnavailableError(f"{self._url}: has no image {row}")
            if member.isfile() and member.name.endswith(f".{IMAGE_EXTENSION}"):
                self._index.extend((member.offset_data, member.size))
            self._tar.members = []  # type: ignore[attr-defined]  # or tarfile keeps every header
        offset, size = self._index[2 * row : 2 * row + 2]
        if size > MAX_IMAGE_BYTES:
            raise ImageUnavailableError(
                f"{self._url}: image {row} claims {size:,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}"
            )
        self._stream.seek(offset)
        content = self._stream.read(size)
        if len(content) < size:
            raise ImageUnavailableError(f"{self._url}: ends within image {row}. Run `lotlip-data verify` on the run.")
        return content
