"""Reading a fetched image shard: the tar that its marker names, one image in memory at a time, and its Parquet."""

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
    """A fetched shard cannot be read; the message names the object and says what to do."""


@dataclass(frozen=True)
class FetchedImage:
    """One image of a shard: `image` holds the stored bytes, `meta` the whole json member of the tar."""

    key: str
    uid: str
    sha256: str
    image: bytes
    meta: dict[str, object]


def fetch_again(run: Run, shard: int) -> str:
    """The remedy where a fetched shard is damaged."""
    return f"Remove {run.image_stats(shard)} and run `lotlip-data download` again."


def fetched_rows(run: Run, shard: int, marker: Mapping[str, Any], columns: Sequence[str]) -> pa.Table:
    """These columns of `schema.IMAGES`, of every row that was asked for. Raises what `parquet_object.read` raises."""
    return artifacts.read_parquet(run.image_file(marker["parquet"]), fetch_again(run, shard), columns)


def fetched_images(run: Run, shard: int) -> Iterator[FetchedImage]:
    """The images of one shard in the order of its tar.

    Raises ShardUnreadable where the tar or one of its members is missing or damaged, as `ledger.read_image_stats` does
    for the marker, and what the storage raises.
    """
    marker = ledger.read_image_stats(run, shard)
    url, remedy = run.image_file(marker["tar"]), fetch_again(run, shard)
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
