"""The downloaded images of a run by shard and key, whether they are in the dataset or not.

The tars that the download wrote are not in the order of their keys, so the headers of a tar are read once, up to the
requested image. The most recently used tars and tables stay open.
"""

import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats import tar_reader
from lotlip_data.manifests.formats.schema import IMAGE_EXTENSION
from lotlip_data.manifests.formats.tar_reader import TarMember
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import ImageMarker
from lotlip_data.pipeline.dataset.tar_images import JPEG_MAGIC, MAX_IMAGE_BYTES, ImageUnavailableError
from lotlip_data.pipeline.downloading.reader import fetched_rows, refetch_remedy

OPEN_SHARDS = 16
"""Number of tars and of tables that stay in memory; a table takes about 100 bytes per image."""
_COLUMNS = ["key", "uid", "original_width", "original_height"]


@dataclass(frozen=True)
class ImageFacts:
    """What the table of a shard says about one image."""

    uid: str
    width: int
    """Width in pixels as downloaded."""
    height: int
    """Height in pixels as downloaded."""


class DownloadedImages:
    """The images and tables in RUN/images."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._tars = functools.lru_cache(OPEN_SHARDS)(_KeyedTar)
        self._tables = functools.lru_cache(OPEN_SHARDS)(self._read_table)
        self._lock = threading.Lock()

    def image(self, shard: int, key: str) -> bytes:
        """Return the JPEG of a key. Raises ImageUnavailableError if there is none."""
        marker = self._marker(shard)
        with self._lock:  # so that the parallel requests of one page open a tar once
            tar = self._tars(self._run.image_file(marker["tar"]), refetch_remedy(self._run, shard))
        return tar.image(key)

    def facts(self, shard: int, key: str) -> ImageFacts | None:
        """Return what the table of a shard says about an image, or None if it does not list the key.

        Raises:
            UserError: The table or the marker of the shard is missing or damaged.
        """
        marker = self._marker(shard)
        with self._lock:
            table = self._tables(shard, marker["parquet"])
        row = pc.index(table["key"], key).as_py()
        if row < 0:
            return None
        _, *values = (table[name][row].as_py() for name in _COLUMNS)
        return ImageFacts(*values)

    def _marker(self, shard: int) -> ImageMarker:
        try:
            return ledger.read_image_stats(self._run, shard)
        except FileNotFoundError:
            raise ImageUnavailableError(f"{self._run.image_stats(shard)}: there is no such shard") from None

    def _read_table(self, shard: int, _parquet: str) -> pa.Table:
        """The table of a shard. Its name keeps the table of an earlier download out of the cache."""
        return fetched_rows(self._run, shard, self._marker(shard), _COLUMNS)


class _KeyedTar:
    """One tar with the members that have been read so far, by key."""

    def __init__(self, url: str, remedy: str) -> None:
        self._url, self._remedy = url, remedy
        self._lock = threading.Lock()
        self._members: dict[str, TarMember] = {}
        self._stream: IO[bytes] | None = None
        self._headers: Iterator[TarMember] = iter(())

    def image(self, key: str) -> bytes:
        with self._lock:
            try:
                if self._stream is None:
                    self._stream = storage.open_read(self._url)
                    self._members.clear()
                    self._headers = tar_reader.scan_members(
                        self._stream, self._url, self._remedy, ImageUnavailableError
                    )
                member = self._find(key)
                content = tar_reader.read_member(self._stream, member, self._url, self._remedy, ImageUnavailableError)
            except ImageUnavailableError:
                self._stream = None  # the next request opens the tar again
                raise
            except (OSError, ValueError) as error:
                self._stream = None
                raise ImageUnavailableError(f"{self._url}: cannot be read ({error}). {self._remedy}") from error
        if not content.startswith(JPEG_MAGIC):
            raise ImageUnavailableError(f"{self._url}: image {key} is not a JPEG")
        return content

    def _find(self, key: str) -> TarMember:
        while key not in self._members:
            member = next(self._headers, None)
            if member is None:
                raise ImageUnavailableError(f"{self._url}: has no image {key}")
            name, extension = tar_reader.split_name(member.name)
            if extension == IMAGE_EXTENSION:
                self._members[name] = member
        member = self._members[key]
        if member.size > MAX_IMAGE_BYTES:
            raise ImageUnavailableError(f"{self._url}: image {key} claims {member.size:,} bytes")
        return member
