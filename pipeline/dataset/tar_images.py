"""The images of a shard's tar by row, without reading the whole tar.

Headers are read only up to the requested row, so the first page of a shard of one gigabyte is cheap, also from S3. The
index takes 16 bytes per image. The most recently used tars stay open.
"""

import functools
import threading
from abc import ABC, abstractmethod
from typing import IO, Generic, TypeVar

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import IMAGE_EXTENSION
from lotlip_data.manifests.formats.tar_reader import TarIndex

OPEN_TARS = 8
"""Number of tars that stay open."""
MAX_IMAGE_BYTES = 100_000_000
"""An image whose header claims more is not read."""
_REMEDY = "Run `lotlip-data verify` on the run."
JPEG_MAGIC = b"\xff\xd8\xff"


Index = TypeVar("Index")
Name = TypeVar("Name", int, str)


class ImageUnavailableError(UserError):
    """An image that cannot be shown; the message says why."""


def tar_problem(url: str, expected: int) -> str | None:
    """Return what one storage request shows to be wrong with a tar of `expected` bytes, or None."""
    try:
        size = storage.size(url)
    except (OSError, UserError) as error:
        return f"{url}: cannot be read ({error}). {_REMEDY}"
    if size is None:
        return f"{url}: is missing, so its images cannot be shown. {_REMEDY}"
    if size != expected:
        problem = f"has {size:,} bytes instead of {expected:,}, so some of its images may be lost"
        return f"{url}: {problem}. {_REMEDY}"
    return None


class TarImages:
    """Reads images by the URL of their tar and their row; keeps the last `open_tars` tars open."""

    def __init__(self, open_tars: int = OPEN_TARS) -> None:
        self._open = functools.lru_cache(open_tars)(_TarOfRows)
        self._lock = threading.Lock()

    def image(self, url: str, row: int) -> bytes:
        """Return the JPEG of a row. Raises ImageUnavailableError if there is none."""
        with self._lock:  # so that the parallel requests of one page open a tar once
            tar = self._open(url, _REMEDY)
        return tar.image(row)


class OpenTar(ABC, Generic[Index, Name]):
    """One tar, open while it is among the most recently used. After an error, the next request opens it again.

    Args:
        url: The tar.
        remedy: What to do about a damaged tar, as a sentence for messages.
    """

    def __init__(self, url: str, remedy: str) -> None:
        self._url, self._remedy = url, remedy
        self._lock = threading.Lock()
        self._index: Index | None = None

    def image(self, name: Name) -> bytes:
        """Return the JPEG of an image. Raises ImageUnavailableError if there is none."""
        content = self.content(name)
        if not content.startswith(JPEG_MAGIC):
            raise ImageUnavailableError(f"{self._url}: image {name} is not a JPEG")
        return content

    def content(self, name: Name) -> bytes:
        """Return the file of an image, of whatever format. Raises ImageUnavailableError if there is none."""
        with self._lock:
            try:
                if self._index is None:
                    self._index = self._open(storage.open_read(self._url))
                return self._read(self._index, name)
            except ImageUnavailableError:
                self._index = None
                raise
            except (OSError, ValueError) as error:
                self._index = None
                raise ImageUnavailableError(f"{self._url}: cannot be read ({error}). {self._remedy}") from error
            except LookupError as error:
                raise ImageUnavailableError(f"{self._url}: has no image {name}") from error

    @abstractmethod
    def _open(self, stream: IO[bytes]) -> Index:
        """Return what finds images in the open tar."""

    @abstractmethod
    def _read(self, index: Index, name: Name) -> bytes:
        """Return the content of an image. Raises LookupError if there is none."""

    def _check_size(self, name: Name, size: int) -> None:
        if size > MAX_IMAGE_BYTES:
            raise ImageUnavailableError(
                f"{self._url}: image {name} claims {size:,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}"
            )


class _TarOfRows(OpenTar[TarIndex, int]):
    """A tar of the dataset."""

    def _open(self, stream: IO[bytes]) -> TarIndex:
        return TarIndex(stream, self._url, self._remedy, f".{IMAGE_EXTENSION}", ImageUnavailableError)

    def _read(self, index: TarIndex, name: int) -> bytes:
        _, size = index.span(name)
        self._check_size(name, size)
        return index.read(name)
