"""Reads a downloaded image shard: the tar that its marker names, one image in memory at a time, and its Parquet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import tar_reader
from lotlip_data.manifests.formats.schema import IMAGE_EXTENSION
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import ImageMarker


class ShardUnreadable(UserError):
    """A downloaded shard cannot be read. The message names the object and the remedy."""


@with_config(ConfigDict(extra="allow"))
class _ImageMember(TypedDict):
    """The json member of an image: a row of `schema.IMAGES`."""

    uid: str
    sha256: str


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


def fetched_rows(run: Run, shard: int, marker: ImageMarker, columns: Sequence[str] | None) -> pa.Table:
    """These columns of `schema.IMAGES`, or all, for every row of the shard. Raises what `read_parquet` raises."""
    url, recorded = run.image_file(marker["parquet"]), marker.get("digests", {}).get("parquet")
    return artifacts.read_parquet(url, refetch_remedy(run, shard), columns, recorded=recorded)


def fetched_images(run: Run, shard: int) -> Iterator[FetchedImage]:
    """The images of one shard in the order of its tar.

    The tar's digest and number of images are compared with the marker after the last image, so the caller must not
    commit what it makes of the images before the iterator has ended.

    Raises ShardUnreadable where the tar or one of its members is missing, damaged or not what the marker says, as
    `ledger.read_image_stats` does for the marker, and what the storage raises.
    """
    marker = ledger.read_image_stats(run, shard)
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
