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
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.formats.schema import EXISTING_IMAGES, SUCCESS
from lotlip_data.manifests.iteration import batched
from lotlip_data.manifests.progress import Progress, progress_bar
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
from lotlip_data.pipeline.existing_images.partition import ContainerShard, identity
from lotlip_data.pipeline.existing_images.rows import ExistingRow, RejectedRow

FAILED = "failed_to_read"
"""`status` of an image that cannot be used."""

_REMEDY = "Restore it and run `lotlip-data download` again, or give --accept-failures to go on without its images."
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
    stem = folder / shard_name(shard)
    tar = ImageTarWriter(stem.with_suffix(".tar")) if source.images == "copy" else None
    rows = _Rows(listed.container, source.name, shard, tar)
    tally = _Tally()
    with (
        contextlib.ExitStack() as stack,
        Converter(conversion_settings(settings), suspects) as converter,
        progress_bar("download", listed.container.rows or 0, "image") as bar,
    ):
        if tar is not None:
            stack.callback(tar.close)
        bodies = ((row, _body(row, settings)) for row in _drawn_rows(listed, source, tally))
        for row, future in converter.submit_ahead(bodies):
            rows.add(row, _outcome(row, future, settings))
            _show(bar, rows)
    stats = {"filtered": dict(tally.filtered.most_common()), "not_drawn": tally.not_drawn}
    stats |= _origin(listed.container, source, tally, settings)
    return _shard(rows, None if tar is None else stem.with_suffix(".tar"), folder, stats, started)


def without_images(listed: ContainerShard, shard: int, error: UserError, folder: pathlib.Path) -> FetchedShard:
    """The shard of a container that cannot be read, as one row without an image. The other arguments are as for `scan`.

    Args:
        listed: The container.
        shard: The number of the shard.
        error: Why it cannot be read.
        folder: Where the files of the shard are written.
    """
    started, rows = time.time(), _Rows(listed.container, listed.source, shard, None)
    row = RejectedRow(0, "", failures.UNUSABLE_CONTAINER, str(error))
    rows.add(row, FetchError(row.reason, row.detail))
    return _shard(rows, None, folder, _reference(listed.container), started)


def _shard(
    rows: "_Rows", tar: pathlib.Path | None, folder: pathlib.Path, stats: dict[str, Any], started: float
) -> FetchedShard:
    """Write the Parquet of a shard. `stats` is what its marker says besides the counts and times."""
    table = pa.Table.from_pylist(rows.rows, schema=EXISTING_IMAGES)
    parquet = folder / "rows.parquet"
    parquet.write_bytes(artifacts.encode_parquet(table))
    ended = time.time()
    counts = {"count": table.num_rows, "successes": rows.images} | failures.count_failures(table)
    times = {"start_time": started, "end_time": ended, "seconds": round(ended - started, 3)}
    return FetchedShard(tar, parquet, table, stats | counts | times)


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
    is_image = isinstance(row, ExistingRow) and row.image and len(row.image) <= settings.max_bytes
    return row.image if is_image else None


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


class _Rows:
    """The rows of a shard: those of its Parquet, and the members of its tar.

    Args:
        container: The container.
        source: The name of its source.
        shard: The number of the shard.
        tar: Receives the images, if the run stores them.
    """

    def __init__(self, container: Container, source: str, shard: int, tar: ImageTarWriter | None) -> None:
        self._container, self._source, self._shard, self._tar = container, source, shard, tar
        self._members: dict[str, str] = {}
        """By uid of a usable image, its name in the container."""
        self.rows: list[Row] = []
        self.images = 0

    def add(self, row: ExistingRow | RejectedRow, outcome: Converted | FetchError) -> None:
        """Add a row with its image, or with the reason why it cannot be used."""
        if len(self.rows) == 10**_ROW_DIGITS:
            raise UserError(f"{self._container}: has more than {10**_ROW_DIGITS:,} images; cut it into smaller files")
        content = self._content(row)
        if not isinstance(outcome, FetchError):
            first = self._members.setdefault(content["uid"], row.name)
            if first != row.name:
                outcome = FetchError(failures.REPEATED, f"as {first}: both have the uid {content['uid']}")
        if isinstance(outcome, FetchError):
            # The uid is that of the usable image, if there is one.
            uid = _hash(f"{identity(self._container)} {row.name}")
            self.rows.append(content | {"uid": uid, "status": FAILED, "error_message": str(outcome)})
            return
        stored = self._tar is not None
        is_as_it_is = outcome.is_plain and not stored
        content |= {
            "status": SUCCESS,
            "width": outcome.original_width if is_as_it_is else outcome.width,
            "height": outcome.original_height if is_as_it_is else outcome.height,
            "original_width": outcome.original_width,
            "original_height": outcome.original_height,
            "converted": None if stored else not outcome.is_plain,
        }
        if self._tar is not None:
            self._tar.add(content["key"], outcome.body, content)
        self.images += 1
        self.rows.append(content)

    def _content(self, row: ExistingRow | RejectedRow) -> Row:
        """The columns of a row that do not depend on its image's outcome."""
        content: Row = dict.fromkeys(EXISTING_IMAGES.names)
        content |= {
            "key": f"{shard_name(self._shard)}{len(self.rows):0{_ROW_DIGITS}d}",
            "texts": [""],
            "container": self._container.url,
            "member": row.name,
        }
        if isinstance(row, ExistingRow):
            sha256 = hashlib.sha256(row.image or b"").hexdigest()
            content |= {"url": row.url, "sha256": sha256, "uid": _uid(row.url, sha256)}
            content["texts"] = list(row.texts) or [""]
        return content | {"sources": [self._source] * len(content["texts"])}


def _uid(url: str | None, sha256: str) -> str:
    """The identity of an image: that of its URL, or of its bytes where it has no URL that could be downloaded."""
    if url:
        with contextlib.suppress(ValueError):
            return uid_from_url(url)
    return sha256[:UID_LENGTH]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:UID_LENGTH]


def _show(bar: Progress, rows: _Rows) -> None:
    bar.note(counts={"downloaded": rows.images})
    bar.update()


def _reference(container: Container) -> dict[str, Any]:
    return {"container": asdict(replace(container, files=()))}  # the table names its files too


def _origin(container: Container, source: Source, tally: _Tally, settings: DownloadSettings) -> dict[str, Any]:
    """What the marker says about the container. Images that stay in it are compared with it whenever they are read."""
    origin = _reference(container)
    if source.images == "copy":
        return origin
    assert tally.digest is not None
    return origin | {
        "container_digest": asdict(tally.digest),
        "conversion": asdict(conversion_settings(settings)),
    }
