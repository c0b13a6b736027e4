"""The dataset of a run as the page needs it: what dataset.json says of its files, and nothing of their content."""

import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lotlip_data.captioners.quality_flags import RULES
from lotlip_data.manifests import dataset_index, schema, storage
from lotlip_data.manifests.dataset_index import SPLITS, DatasetError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.subcaptions import SplitMode

_PLAIN = re.compile(r"\w[\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """A tar and its Parquet twin, with their `samples` in the same order."""

    split: str
    tar: str
    parquet: str
    sha256: str
    bytes: int
    """Both of the tar."""
    samples: int


@dataclass(frozen=True)
class Samples:
    """A dataset: all of its files, of all splits."""

    name: str
    captioners: tuple[str, ...]
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    sub_captions: SplitMode
    files: tuple[File, ...]

    @property
    def parquets(self) -> list[str]:
        return [file.parquet for file in self.files]

    @property
    def columns(self) -> pa.Schema:
        """Those of every Parquet file."""
        return schema.dataset(self.captioners)

    @property
    def total(self) -> int:
        return sum(file.samples for file in self.files)


def open_samples(run: Run) -> Samples:
    """The dataset of a run. Raises DatasetError where there is none, or it names what is not in its folder."""
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
                for split, where in SPLITS.items()
                for record in content[where]
                if record["samples"]
            ),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{run.dataset}: lacks what it should say ({error!r}). Run `lotlip-data shard`.") from error


def _file(run: Run, split: str, record: dict[str, Any]) -> File:
    names = [record["tar"]["name"], record["parquet"]["name"]]
    sha256 = record["tar"]["sha256"]
    if not all(_PLAIN.fullmatch(name) for name in names) or not _SHA256.fullmatch(sha256):
        raise DatasetError(f"{run.dataset}: names a file that is not in its folder: {names}")
    tar, parquet = (storage.join(run.shards, name) for name in names)
    return File(split, tar, parquet, sha256, int(record["tar"]["bytes"]), int(record["samples"]))
