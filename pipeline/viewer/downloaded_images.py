"""The downloaded images of a run by shard and key, whether they are in the dataset or not.

Images that the run does not store are read from their container. The tars that the download wrote are not in the order
of their keys, so the headers of a tar are read once, up to the requested image. The most recently used tars and tables
stay open.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests.formats import tar_reader
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.formats.schema import IMAGE_EXTENSION, ORIGIN
from lotlip_data.manifests.formats.tar_reader import TarMember
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import ImageMarker
from lotlip_data.pipeline.dataset.tar_images import ImageUnavailableError, OpenTar
from lotlip_data.pipeline.downloading.images.isolation import ConverterError
from lotlip_data.pipeline.downloading.reader import ShardUnreadable, fetched_rows, referenced_image, refetch_remedy

OPEN_SHARDS = 16
"""Number of tars and of tables that stay in memory; a table takes about 100 bytes per image."""
_FACTS = ["uid", "original_width", "original_height"]
_COLUMNS = ["key", "sha256", *_FACTS, *ORIGIN.names]


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
        self._tars = functools.lru_cache(OPEN_SHARDS)(_TarOfKeys)
        self._existing_tars = functools.lru_cache(OPEN_SHARDS)(_TarOfNames)
        self._tables = functools.lru_cache(OPEN_SHARDS)(self._read_table)
        self._lock = threading.Lock()

    def image(self, shard: int, key: str) -> bytes:
        """Return the JPEG of a key. Raises ImageUnavailableError if there is none."""
        marker = self._marker(shard)
        if "tar" not in marker:
            return self._referenced(shard, key, marker)
        with self._lock:  # so that the parallel requests of one page open a tar once
            tar = self._tars(self._run.image_file(marker["tar"]), refetch_remedy(self._run, shard))
        return tar.image(key)

    def facts(self, shard: int, key: str) -> ImageFacts | None:
        """Return what the table of a shard says about an image, or None if it does not list the key.

        Raises:
            UserError: The table or the marker of the shard is missing or damaged.
        """
        row = self._row(shard, key, self._marker(shard))
        return None if row is None else ImageFacts(*(row[name] for name in _FACTS))

    def _row(self, shard: int, key: str, marker: ImageMarker) -> dict[str, Any] | None:
        with self._lock:
            table = self._tables(shard, marker["parquet"])
        row = pc.index(table["key"], key).as_py()
        return None if row < 0 else {name: table[name][row].as_py() for name in _COLUMNS}

    def _referenced(self, shard: int, key: str, marker: ImageMarker) -> bytes:
        row = self._row(shard, key, marker)
        if row is None or row["converted"] is None:
            raise ImageUnavailableError(f"{self._run.image_stats(shard)}: the shard has no image {key}")
        is_seekable = marker["container"].kind == "tar" and marker["container"].url.lower().endswith(".tar")
        try:
            return referenced_image(self._run, shard, marker, row, self._content if is_seekable else None)
        except (ShardUnreadable, ConverterError, OSError) as error:
            raise ImageUnavailableError(str(error)) from error

    def _content(self, container: Container, name: str) -> bytes:
        with self._lock:
            tar = self._existing_tars(container.url, "Run `lotlip-data verify` on the run.")
        return tar.content(name)

    def _marker(self, shard: int) -> ImageMarker:
        try:
            return ledger.read_image_stats(self._run, shard)
        except FileNotFoundError:
            raise ImageUnavailableError(f"{self._run.image_stats(shard)}: there is no such shard") from None

    def _read_table(self, shard: int, _parquet: str) -> pa.Table:
        """The table of a shard. Its name keeps the table of an earlier download out of the cache."""
        return fetched_rows(self._run, shard, self._marker(shard), _COLUMNS)


class _Headers:
    """The members of an open tar that have been read so far, by name, and those to come.

    Args:
        stream: The tar.
        headers: Its members.
        name_of: The name by which a member is found; None for a member that is no image.
    """

    def __init__(
        self, stream: IO[bytes], headers: Iterator[TarMember], name_of: Callable[[TarMember], str | None]
    ) -> None:
        self.stream, self._headers, self._name_of = stream, headers, name_of
        self._members: dict[str, TarMember] = {}

    def find(self, wanted: str) -> TarMember:
        """Return the image of a name. Raises KeyError if the tar has none."""
        while wanted not in self._members:
            member = next(self._headers, None)
            if member is None:
                raise KeyError(wanted)
            if (name := self._name_of(member)) is not None:
                self._members[name] = member
        return self._members[wanted]


def _key_of(member: TarMember) -> str | None:
    key, extension = tar_reader.split_name(member.name)
    return key if extension == IMAGE_EXTENSION else None


class _TarOfKeys(OpenTar[_Headers, str]):
    """A tar of downloaded images."""

    _name_of: Callable[[TarMember], str | None] = staticmethod(_key_of)

    def _open(self, stream: IO[bytes]) -> _Headers:
        headers = tar_reader.scan_members(stream, self._url, self._remedy, ImageUnavailableError)
        return _Headers(stream, headers, self._name_of)

    def _read(self, index: _Headers, name: str) -> bytes:
        member = index.find(name)
        self._check_size(name, member.size)
        return tar_reader.read_member(index.stream, member, self._url, self._remedy, ImageUnavailableError)


class _TarOfNames(_TarOfKeys):
    """A tar that existed before the run, whose images are found by the names of their members."""

    _name_of = staticmethod(lambda member: member.name)
