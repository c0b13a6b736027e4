"""The dataset of a run as the page needs it: what dataset.json says about its files, without their content."""

import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lotlip_data.captioners.quality_flags import RULES
from lotlip_data.manifests import dataset_index, schema, storage
from lotlip_data.manifests.dataset_index import SPLITS, DatasetError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.subcaptions import SplitMode

_FILE_NAME = re.compile(r"\w[\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardFile:
    """A tar and its Parquet twin, which hold the same samples in the same order."""

    split: str
    tar: str
    parquet: str
    sha256: str
    """Of the tar."""
    bytes: int
    """Size of the tar."""
    samples: int
    """Number of samples."""


@dataclass(frozen=True)
class Samples:
    """A dataset: the files of all its splits."""

    name: str
    captioners: tuple[str, ...]
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    sub_captions: SplitMode
    files: tuple[ShardFile, ...]

    @property
    def parquets(self) -> list[str]:
        """The URLs of the Parquet files, in order."""
        return [file.parquet for file in self.files]

    @property
    def columns(self) -> pa.Schema:
        """The schema of every Parquet file."""
        return schema.dataset(self.captioners)

    @property
    def total(self) -> int:
        """The number of samples."""
        return sum(file.samples for file in self.files)


def open_samples(run: Run) -> Samples:
    """Return the dataset of a run.

    Raises:
        DatasetError: There is no dataset, or dataset.json is damaged or names a file outside its folder.
    """
    content = dataset_index.read_index(run)
    try:
        return Samples(
            name=str(content["name"]),
            captioners=tuple(content["captioners"]),
            sources=tuple(source["name"] for source in content["manifest"]["sources"]),
            flags=tuple(RULES),
            sub_captions=content["sub_captions"],
            files=tuple(
                _file(run, split, record)
                for split, key in SPLITS.items()
                for record in content[key]
                if record["samples"]
            ),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{run.dataset}: a field is missing or has the wrong type ({error!r}). Run `lotlip-data shard`."
        ) from error


def _file(run: Run, split: str, record: dict[str, Any]) -> ShardFile:
    names = [record["tar"]["name"], record["parquet"]["name"]]
    sha256 = record["tar"]["sha256"]
    if not all(_FILE_NAME.fullmatch(name) for name in names) or not _SHA256.fullmatch(sha256):
        raise DatasetError(f"{run.dataset}: names a file outside its folder: {names}")
    tar, parquet = (storage.join(run.shards, name) for name in names)
    return ShardFile(split, tar, parquet, sha256, int(record["tar"]["bytes"]), int(record["samples"]))
