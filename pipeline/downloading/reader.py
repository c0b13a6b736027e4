"""Reads a downloaded image shard: the tar that its marker names, one image in memory at a time, and its Parquet."""

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger


class ShardUnreadable(UserError):
    """A downloaded shard cannot be read. The message names the object and the remedy."""


@dataclass(frozen=True)
class FetchedImage:
    """One image of a shard. `image`: the stored bytes. `meta`: the whole JSON member of the tar."""

    key: str
    uid: str
    sha256: str
    image: bytes
    meta: dict[str, object]


def refetch_remedy(run: Run, shard: int) -> str:
    """The remedy for a damaged downloaded shard."""
    return f"Remove {run.image_stats(shard)} and run `lotlip-data download` again."


def fetched_rows(run: Run, shard: int, marker: Mapping[str, Any], columns: Sequence[str]) -> pa.Table:
    """These columns of `schema.IMAGES`, for every row of the shard. Raises what `artifacts.read_parquet` raises."""
    return artifacts.read_parquet(storage.join(run.images, marker["parquet"]), refetch_remedy(run, shard), columns)


def fetched_images(run: Run, shard: int) -> Iterator[FetchedImage]:
    """The images of one shard in the order of its tar.

    Raises ShardUnreadable where the tar or one of its members is missing or damaged, as `ledger.read_image_stats` does
    for the marker, and what the storage raises.
    """
    marker = ledger.read_image_stats(run, shard)
    tar_url = storage.join(run.images, marker["tar"])
    try:
        with storage.open_read(tar_url) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            yield from _pairs(tar, tar_url)
    except (tarfile.TarError, EOFError, FileNotFoundError) as error:
        raise ShardUnreadable(f"{tar_url}: cannot be read ({error}). {refetch_remedy(run, shard)}") from error


def _pairs(tar: tarfile.TarFile, tar_url: str) -> Iterator[FetchedImage]:
    """Joins the tar's neighbouring members `{key}.jpg` and `{key}.json`, in either order."""
    image: dict[str, bytes] = {}
    meta: dict[str, dict[str, object]] = {}
    for member in tar:
        key, _, ending = member.name.partition(".")
        content = tar.extractfile(member)
        if content is None:
            continue
        if ending == "json":
            meta[key] = _fields(content.read(), member.name)
        elif ending == "jpg":
            image[key] = content.read()
        if key in image and key in meta:
            fields = meta.pop(key)
            yield FetchedImage(key, str(fields["uid"]), str(fields["sha256"]), image.pop(key), fields)
    if image or meta:
        alone = sorted({*image, *meta})
        raise tarfile.ReadError(f"{len(alone)} members of {tar_url} lack their other half, {alone[0]} among them")


def _fields(text: bytes, member: str) -> dict[str, object]:
    try:
        return artifacts.parse_json(text, member, "", {"uid": str, "sha256": str})
    except UserError as error:
        raise tarfile.ReadError(str(error).strip()) from None
