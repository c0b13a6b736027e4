"""Scans a container of images that exist: the same checks and the same rows as after a download, without a request.

    container → rows that filter and sample keep → converter process → Parquet with a row per image; for a copy, a tar

Images that stay where they are go through the conversion too, which finds what cannot be used. Its result is discarded:
a plain JPEG is later read as it is, and any other image is converted again whenever it is read.
"""

import contextlib
import hashlib
import pathlib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.digests import Digest
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import EXISTING_IMAGES, SUCCESS
from lotlip_data.manifests.iteration import batched
from lotlip_data.manifests.progress import progress_bar
from lotlip_data.manifests.run_layout import shard_name
from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.sources.sample_id import UID_LENGTH, uid_from_url
from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.image_tar import ImageTarWriter
from lotlip_data.pipeline.downloading.images.isolation import Converter, Suspects
from lotlip_data.pipeline.downloading.images.messages import Converted
from lotlip_data.pipeline.downloading.img2dataset_adapter import FetchedShard, conversion_settings
from lotlip_data.pipeline.existing_images.filtering import BATCH, usable_rows
from lotlip_data.pipeline.existing_images.partition import ContainerShard, image_identity
from lotlip_data.pipeline.existing_images.rows import ExistingRow, RejectedRow

FAILED = "failed_to_read"
"""`status` of an image that cannot be used."""

_REMEDY = "Restore it and run `lotlip-data download` again, or give --accept-failures to go on without its images."
_ROW_GROUP = 1000
"""Rows of a row group in the Parquet."""
_ROW_DIGITS = 6
"""Digits of the row in a key: how many images a container has is not known before it ends."""

Row = dict[str, Any]


def scan(
    listed: ContainerShard,
    source: Source,
    shard: int,
    settings: DownloadSettings,
    folder: pathlib.Path,
    suspects: Suspects | None = None,
) -> FetchedShard:
    """Check the images of a container, and write the files of its shard into the empty local `folder`.

    Args:
        listed: The container, and which of its images are used.
        source: Its source.
        shard: The number of the shard.
        settings: The settings of the download: limits, and how images are stored.
        folder: Where the files of the shard are written.
        suspects: The memory of images with which earlier attempts died.

    Raises:
        UserError: The container is missing or damaged, or has too many images.
        ConverterError: No image can be decoded here.
        OSError: The storage cannot be reached, or the folder cannot be written to.
    """
    started = time.time()
    tally = _Tally()
    with (
        Converter(conversion_settings(settings), suspects) as converter,
        progress_bar("download", listed.container.rows, "image") as bar,
        _ShardFiles(listed, shard, folder, copies=source.images == "copy") as files,
    ):
        bodies = ((row, _body(row, settings)) for row in _drawn_rows(listed, source, tally))
        for row, future in converter.submit_ahead(bodies):
            files.add(row, _outcome(row, future, settings))
            bar.note(counts={"downloaded": files.images})
            bar.update()
    stats = {"filtered": dict(tally.filtered.most_common()), "not_drawn": tally.not_drawn}
    if source.images == "reference":
        assert tally.digest is not None
        stats |= {
            "container_digest": asdict(tally.digest),
            "conversion": asdict(conversion_settings(settings)),
            "converted": files.converted,
        }
    return files.fetched(stats, started)


def without_images(listed: ContainerShard, shard: int, error: UserError, folder: pathlib.Path) -> FetchedShard:
    """The shard of a container that cannot be read, as one row without an image.

    Args:
        listed: The container.
        shard: The number of the shard.
        error: Why it cannot be read.
        folder: Where the files of the shard are written.
    """
    started = time.time()
    with _ShardFiles(listed, shard, folder, copies=False) as files:
        files.add(RejectedRow(0, "", "", ""), FetchError(failures.UNUSABLE_CONTAINER, str(error)))
    return files.fetched({}, started)


@dataclass
class _Tally:
    """Rows of a container that are not used, and its digest once it is read."""

    filtered: Counter[str] = field(default_factory=Counter)
    not_drawn: int = 0
    digest: Digest | None = None

    def note_digest(self, digest: Digest) -> None:
        self.digest = digest

    def count_filtered(self, reason: str, rows: int) -> None:
        self.filtered[reason] += rows


def _drawn_rows(listed: ContainerShard, source: Source, tally: _Tally) -> Iterator[ExistingRow | RejectedRow]:
    """The rows of a container that the filter keeps and the sample draws."""
    rows = usable_rows(listed.container, source, True, _REMEDY, tally.count_filtered, tally.note_digest)
    for batch in batched(rows, BATCH):
        drawn = listed.draws([row.name for row in batch])
        tally.not_drawn += len(batch) - int(drawn.sum())
        yield from (row for row, is_drawn in zip(batch, drawn, strict=True) if is_drawn)


def _body(row: ExistingRow | RejectedRow, settings: DownloadSettings) -> bytes | None:
    """The image of a row, if it is to be converted."""
    if isinstance(row, RejectedRow) or not row.image or len(row.image) > settings.max_bytes:
        return None
    return row.image


def _outcome(
    row: ExistingRow | RejectedRow, future: "Future[Converted] | None", settings: DownloadSettings
) -> Converted | FetchError:
    """The converted image of a row, or why it has none. Raises what the conversion raises beyond a FetchError."""
    if isinstance(row, RejectedRow):
        if row.reason in failures.VOCABULARY:
            return FetchError(row.reason, row.detail)
        return FetchError(failures.UNUSABLE_ROW, ": ".join(filter(None, (row.reason, row.detail))))
    if row.image is None:
        return FetchError(failures.NO_IMAGE)
    if future is None:
        if not row.image:
            return FetchError(failures.EMPTY)
        limit = f"{len(row.image):,} bytes; `download.max_bytes` is {settings.max_bytes:,}"
        return FetchError(failures.TOO_LARGE, limit)
    try:
        return future.result()
    except FetchError as error:
        return error


class _ShardFiles:
    """Writes the Parquet of a shard and, for a copy, its tar. Memory does not grow with the rows, but for their uids.

    Args:
        listed: The container, and the name of its source.
        shard: The number of the shard.
        folder: Where the files are written.
        copies: Whether the run stores the images.
    """

    def __init__(self, listed: ContainerShard, shard: int, folder: pathlib.Path, copies: bool) -> None:
        self._listed, self._shard = listed, shard
        self._tar = folder / f"{shard_name(shard)}.tar" if copies else None
        self._parquet = folder / f"{shard_name(shard)}.parquet"
        self._members: dict[str, str] = {}
        """By uid of a usable image, its name in the container."""
        self._unwritten: list[Row] = []
        self._failures: Counter[tuple[str | None, str]] = Counter()
        """Rows without an image, by URL, or None, and error message."""
        self.rows = self.images = self.converted = 0

    def __enter__(self) -> "_ShardFiles":
        self._tar_writer = None if self._tar is None else ImageTarWriter(self._tar)
        self._parquet_writer = artifacts.parquet_writer(self._parquet, EXISTING_IMAGES)
        return self

    def __exit__(self, *error: object) -> None:
        self._write_rows()
        self._parquet_writer.close()
        if self._tar_writer is not None:
            self._tar_writer.close()

    def add(self, row: ExistingRow | RejectedRow, outcome: Converted | FetchError) -> None:
        """Add a row with its image, or with the reason why it cannot be used."""
        content = self._content(row)
        if not isinstance(outcome, FetchError):
            first = self._members.setdefault(content["uid"], row.name)
            if first != row.name:
                outcome = FetchError(failures.REPEATED, f"as {first}: both have the uid {content['uid']}")
        content |= self._failure(row, outcome) if isinstance(outcome, FetchError) else self._success(outcome)
        if isinstance(outcome, Converted) and self._tar_writer is not None:
            self._tar_writer.add(content["key"], outcome.body, content)
        self.rows += 1
        self._unwritten.append(content)
        if len(self._unwritten) == _ROW_GROUP:
            self._write_rows()

    def _failure(self, row: ExistingRow | RejectedRow, error: FetchError) -> Row:
        url = row.url if isinstance(row, ExistingRow) else None
        self._failures[url, str(error)] += 1
        uid = _hash(image_identity(self._listed.container, row.name))  # a usable image may have the uid of the content
        return {"uid": uid, "status": FAILED, "error_message": str(error)}

    def _success(self, image: Converted) -> Row:
        is_used_as_it_is = image.is_plain and self._tar is None
        self.images += 1
        self.converted += not is_used_as_it_is
        return {
            "status": SUCCESS,
            "width": image.original_width if is_used_as_it_is else image.width,
            "height": image.original_height if is_used_as_it_is else image.height,
            "original_width": image.original_width,
            "original_height": image.original_height,
            "converted": not image.is_plain if self._tar is None else None,
        }

    def _write_rows(self) -> None:
        if self._unwritten:
            self._parquet_writer.write_table(pa.Table.from_pylist(self._unwritten, schema=EXISTING_IMAGES))
            self._unwritten = []

    def fetched(self, stats: dict[str, Any], started: float) -> FetchedShard:
        """The shard, once its files are written.

        Args:
            stats: What its marker says besides counts, times and the container.
            started: Unix time in seconds.
        """
        ended = time.time()
        return FetchedShard(
            self._tar,
            self._parquet,
            {
                "count": self.rows,
                "successes": self.images,
                **failures.count_rows(self.images, self._failures),
                "container": asdict(replace(self._listed.container, files=())),  # the table names its files too
                **stats,
                "start_time": started,
                "end_time": ended,
                "seconds": round(ended - started, 3),
            },
        )

    def _content(self, row: ExistingRow | RejectedRow) -> Row:
        """The columns of a row that do not depend on its image's outcome."""
        content: Row = dict.fromkeys(EXISTING_IMAGES.names)
        content |= {
            "key": f"{shard_name(self._shard)}{self.rows:0{_ROW_DIGITS}d}",
            "texts": [""],
            "container": self._listed.container.url,
            "member": row.name,
        }
        if isinstance(row, ExistingRow):
            sha256 = hashlib.sha256(row.image or b"").hexdigest()
            content |= {"url": row.url, "sha256": sha256, "uid": _uid(row.url, sha256)}
            content["texts"] = list(row.texts) or [""]
        return content | {"sources": [self._listed.source] * len(content["texts"])}


def _uid(url: str | None, sha256: str) -> str:
    """The identity of an image: that of its URL, or of its bytes where it has no URL that could be downloaded."""
    if url:
        with contextlib.suppress(ValueError):
            return uid_from_url(url)
    return sha256[:UID_LENGTH]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:UID_LENGTH]
