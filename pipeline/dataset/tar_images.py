"""The images of a shard's tar by row, without reading the whole tar.

Headers are read only up to the requested row, so the first page of a shard of one gigabyte is cheap, also from S3. The
index takes 16 bytes per image. The most recently used tars stay open.
"""

import functools
import threading

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
        self._index: TarIndex | None = None

    def image(self, row: int) -> bytes:
        with self._lock:
            try:
                content = self._read(row)
            except ImageUnavailableError:
                self._index = None  # the next request opens the tar again
                raise
            except (OSError, ValueError) as error:
                self._index = None
                raise ImageUnavailableError(f"{self._url}: cannot be read ({error}). {_REMEDY}") from error
            except IndexError as error:
                raise ImageUnavailableError(f"{self._url}: has no image {row}") from error
        if not content.startswith(JPEG_MAGIC):
            raise ImageUnavailableError(f"{self._url}: image {row} is not a JPEG")
        return content

    def _read(self, row: int) -> bytes:
        if self._index is None:
            stream = storage.open_read(self._url)
            self._index = TarIndex(stream, self._url, _REMEDY, f".{IMAGE_EXTENSION}", ImageUnavailableError)
        _, size = self._index.span(row)
        if size > MAX_IMAGE_BYTES:
            raise ImageUnavailableError(
                f"{self._url}: image {row} claims {size:,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}"
            )
        return self._index.read(row)
