"""Reads a downloaded image shard: the tar that its marker names, one image in memory at a time, and its Parquet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lotlip_data.manifests import artifacts, tar_reader
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.schema import IMAGE_EXTENSION
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
    return artifacts.read_parquet(run.image_file(marker["parquet"]), refetch_remedy(run, shard), columns)


def fetched_images(run: Run, shard: int) -> Iterator[FetchedImage]:
    """The images of one shard in the order of its tar.

    Raises ShardUnreadable where the tar or one of its members is missing or damaged, as `ledger.read_image_stats` does
    for the marker, and what the storage raises.
    """
    marker = ledger.read_image_stats(run, shard)
    url, remedy = run.image_file(marker["tar"]), refetch_remedy(run, shard)
    for sample in tar_reader.iter_samples(url, remedy, ShardUnreadable):
        image, meta = sample.members.get(IMAGE_EXTENSION), sample.members.get("json")
        if image is None and meta is None:
            continue
        if image is None or meta is None:
            lacking = "image" if image is None else "json member"
            raise ShardUnreadable(f"{url}: sample {sample.key} has no {lacking}. {remedy}")
        try:
            fields = artifacts.parse_json(meta, f"{sample.key}.json", "", {"uid": str, "sha256": str})
        except UserError as error:
            raise ShardUnreadable(f"{url}: cannot be read ({str(error).strip()}). {remedy}") from None
        yield FetchedImage(sample.key, str(fields["uid"]), str(fields["sha256"]), image, fields)
