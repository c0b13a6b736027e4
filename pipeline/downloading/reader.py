"""Reads an image shard, one image in memory at a time, and its Parquet.

The images are in the tar that the shard's marker names. Images that existed before the run can be where they lie: then
the marker names the container, and each image is compared with its recorded sha256 before anyone gets it.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import tar_reader
from lotlip_data.manifests.formats.image_containers import Container, FolderFile
from lotlip_data.manifests.formats.schema import IMAGE_EXTENSION, ORIGIN, SUCCESS
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import ImageMarker
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.images.isolation import Converter
from lotlip_data.pipeline.downloading.images.messages import ConversionSettings
from lotlip_data.pipeline.existing_images.reader import iter_images, read_image

_ROWS_IN_MEMORY = 1000


class ShardUnreadable(UserError):
    """A downloaded shard cannot be read. The message names the object and the remedy."""


@with_config(ConfigDict(extra="allow"))
class _ImageMember(TypedDict):
    """The json member of an image: a row of `schema.IMAGES`."""

    uid: str
    sha256: str


@dataclass(frozen=True)
class FetchedImage:
    """One image of a shard. `image`: the stored bytes. `meta`: its row, as in the tar's JSON member or the Parquet."""

    key: str
    uid: str
    sha256: str
    image: bytes
    meta: dict[str, object]


def refetch_remedy(run: Run, shard: int) -> str:
    """The remedy for a damaged downloaded shard."""
    return f"Remove {run.image_stats(shard)} and run `lotlip-data download` again."


def container_remedy(run: Run, shard: int) -> str:
    """The remedy for a container that is not what the run has scanned."""
    return (
        f"Put back what was scanned; or, to use it as it is now, remove {run.image_stats(shard)} and run `lotlip-data "
        "download` again."
    )


def fetched_rows(run: Run, shard: int, marker: ImageMarker, columns: Sequence[str] | None) -> pa.Table:
    """These columns of `schema.EXISTING_IMAGES`, or all that the shard has, for every row of the shard.

    The columns of `schema.ORIGIN` are null for images that were downloaded. Raises what `read_parquet` raises.
    """
    url, recorded = run.image_file(marker["parquet"]), marker.get("digests", {}).get("parquet")
    absent = [] if columns is None or "container" in marker else [name for name in columns if name in ORIGIN.names]
    stored = columns if columns is None else [name for name in columns if name not in absent]
    table = artifacts.read_parquet(url, refetch_remedy(run, shard), stored, recorded=recorded)
    for name in absent:
        table = table.append_column(name, pa.nulls(table.num_rows, ORIGIN.field(name).type))
    return table


def fetched_images(run: Run, shard: int) -> Iterator[FetchedImage]:
    """The images of one shard in the order of its tar or its container.

    The digest of the tar or the container, and the number of images, are compared with the marker after the last image,
    so the caller must not commit what it makes of the images before the iterator has ended.

    Raises ShardUnreadable where the file or an image in it is missing, damaged or not what the marker says, as
    `ledger.read_image_stats` does for the marker, and what the storage raises.
    """
    marker = ledger.read_image_stats(run, shard)
    return _stored_images(run, shard, marker) if "tar" in marker else _referenced_images(run, shard, marker)


def _stored_images(run: Run, shard: int, marker: ImageMarker) -> Iterator[FetchedImage]:
    url, remedy = run.image_file(marker["tar"]), refetch_remedy(run, shard)
    images = 0
    for sample in tar_reader.iter_samples(url, remedy, ShardUnreadable, marker.get("digests", {}).get("tar")):
        image, meta = sample.members.get(IMAGE_EXTENSION), sample.members.get("json")
        if image is None and meta is None:
            continue
        if image is None or meta is None:
            lacking = "image" if image is None else "json member"
            raise ShardUnreadable(f"{url}: sample {sample.key} has no {lacking}. {remedy}")
        try:
            fields = artifacts.parse_json(meta, f"{sample.key}.json", "", _ImageMember)
        except UserError as error:
            raise ShardUnreadable(f"{url}: cannot be read ({error}). {remedy}") from None
        images += 1
        yield FetchedImage(sample.key, fields["uid"], fields["sha256"], image, dict(fields))
    if images != marker["successes"]:
        raise ShardUnreadable(f"{url}: contains {images} images, but its marker says {marker['successes']}. {remedy}")


def _referenced_images(run: Run, shard: int, marker: ImageMarker) -> Iterator[FetchedImage]:
    """The images of a container, in its order, which is that of the keys."""
    if not marker["successes"]:
        return
    remedy = container_remedy(run, shard)
    with contextlib.ExitStack() as stack:
        rows = _with_bytes(run, shard, marker, remedy)
        if not marker.get("converted"):
            for row, content in rows:
                yield _fetched(row, content)
            return
        converter = stack.enter_context(Converter(ConversionSettings(**marker.get("conversion", {}))))
        to_convert = (((row, content), content if row["converted"] else None) for row, content in rows)
        for (row, content), future in converter.submit_ahead(to_convert):
            try:
                yield _fetched(row, content if future is None else future.result().body)
            except FetchError as error:
                raise ShardUnreadable(_not_convertible(marker["container"], row["member"], error, remedy)) from None


def _fetched(row: dict[str, Any], content: bytes) -> FetchedImage:
    return FetchedImage(row["key"], row["uid"], row["sha256"], content, row)


def _not_convertible(container: Container, member: str, error: FetchError, remedy: str) -> str:
    return f"{container}: image {member} cannot be converted any more ({error}). {remedy}"


def _with_bytes(run: Run, shard: int, marker: ImageMarker, remedy: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The rows of a shard that have an image, with its bytes.

    Raises ShardUnreadable if the container is not what was scanned.
    """
    container, recorded = marker["container"], marker.get("container_digest")
    if container.kind == "folder":
        table = fetched_rows(run, shard, marker, ["member", "status"])
        used = table.filter(pc.equal(table["status"], SUCCESS))["member"].to_pylist()
        container, recorded = read_part(container, used), None  # which is the digest of all files
    rows = rows_with_image(run, shard, marker)
    row = next(rows, None)
    for image in iter_images(container, remedy, ShardUnreadable, recorded):
        if row is None or image.name != row["member"]:
            continue  # one that is not used
        _check(container, row["member"], row["sha256"], image.image, remedy)
        yield row, image.image
        row = next(rows, None)
    if row is not None:
        raise ShardUnreadable(f"{container}: has no image {row['member']} any more. {remedy}")


def rows_with_image(run: Run, shard: int, marker: ImageMarker) -> Iterator[dict[str, Any]]:
    """The rows of a shard that have an image, in the order of its Parquet file, a bounded number in memory."""
    url, recorded = run.image_file(marker["parquet"]), marker.get("digests", {}).get("parquet")
    remedy = refetch_remedy(run, shard)
    for batch in artifacts.iter_parquet(url, remedy, None, _ROWS_IN_MEMORY, ShardUnreadable, recorded):
        yield from (row for row in batch.to_pylist() if row["status"] == SUCCESS)


def _check(container: Container, member: str, sha256: str, content: bytes, remedy: str) -> None:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ShardUnreadable(f"{container}: image {member} has changed since it was scanned. {remedy}")


def read_part(container: Container, members: Iterable[str]) -> Container:
    """The part of a container that is read for these members: the whole, except for a folder, where it is their files.

    Args:
        container: The container, of a folder without its files.
        members: The names of the images that are used.
    """
    if container.kind != "folder":
        return container
    return replace(container, files=tuple(FolderFile(name) for name in members))


def referenced_image(
    run: Run,
    shard: int,
    marker: ImageMarker,
    row: dict[str, Any],
    read: Callable[[Container, str], bytes] | None = None,
) -> bytes:
    """One image that is where it lies, as `fetched_images` gives it.

    Args:
        run: The run.
        shard: The number of its shard.
        marker: The marker of the shard.
        row: The `member`, the `sha256` and `converted` of the image.
        read: Reads an image of a container by its name. Default: reads the container up to the image.

    Raises:
        ShardUnreadable: It is missing, or is not what was scanned.
    """
    member, remedy = row["member"], container_remedy(run, shard)
    container = read_part(marker["container"], [member])
    try:
        content = (read or partial(read_image, remedy=remedy, error_type=ShardUnreadable))(container, member)
    except KeyError:
        raise ShardUnreadable(f"{container}: has no image {member} any more. {remedy}") from None
    _check(container, member, row["sha256"], content, remedy)
    if not row["converted"]:
        return content
    with Converter(ConversionSettings(**marker.get("conversion", {}))) as converter:
        try:
            return converter.convert(content).body
        except FetchError as error:
            raise ShardUnreadable(_not_convertible(container, member, error, remedy)) from None
