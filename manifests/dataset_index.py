"""The one reader of `dataset.json`, and of the markers in `shards/.done/` from which it is made.

A marker is committed per input shard and lists the files that the shard became. `dataset.json` has the same records of
all shards in its lists, one entry per line, and the summary of the dataset around them. Both are written by
`pipeline.dataset`. A dataset of 100 million images has many entries, so `read_dataset_summary` and `entries` read the
file line by line.
"""

import dataclasses
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lotlip_data.manifests import artifacts, schema, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run, shard_name

DATASET_JSON, CARD, CROISSANT = "dataset.json", "README.md", "croissant.json"
MARKERS = ".done"
SPLITS = {"train": "shards", "validation": "validation"}
"""Split → list of dataset.json with its files."""
INPUTS, REPLACED = "inputs", "replaced"
"""Further lists of dataset.json: the input shards, and the names of objects that this dataset replaced."""
RECORD_LISTS = (INPUTS, *SPLITS.values())
"""The lists of dataset.json with records."""

_FIELDS: dict[str, type] = {
    **dict.fromkeys(("captioners", "rules", "splits", "long_texts", "dropped", "dropped_texts", "manifest"), dict),
    **dict.fromkeys(("columns", "shards", "inputs"), list),
    **dict.fromkeys(("fetched", "samples", "bytes"), int),
}
_MARKER_NAME = re.compile(r"(\d{5,})-([0-9a-f]{12})\.json")
_LIST_OPENINGS = {f' "{name}": [\n' for name in (*RECORD_LISTS, REPLACED)}
LIST_CLOSING = " ]"
"""How the line after a list starts."""


class DatasetError(UserError):
    """The dataset is missing or damaged, or does not fit the settings; the message says how to fix it."""


@dataclass(frozen=True)
class FileRecord:
    """One file of the dataset as it was committed."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Output:
    """A tar and its Parquet twin: the samples of one input shard in one split, or as many of them as fit."""

    split: str
    samples: int
    long_texts: dict[str, int]
    """Captioner → number of its long texts."""
    tar: FileRecord
    parquet: FileRecord

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Output":
        files = {name: FileRecord(**content[name]) for name in ("tar", "parquet")}
        return cls(**{field.name: content[field.name] for field in dataclasses.fields(cls)} | files)

    @property
    def files(self) -> tuple[FileRecord, FileRecord]:
        return self.tar, self.parquet


@dataclass(frozen=True)
class ShardRecord:
    """The content of the marker of one input shard: its files, and counts of all its samples and texts."""

    shard: int
    fingerprint: str
    recipe: str
    fetched: int
    samples: int
    dropped: dict[str, int]
    """Reason → number of samples left out."""
    dropped_texts: dict[str, dict[str, int]]
    """`raw` or captioner → reason → number of texts left out. The samples of these texts are in the dataset."""
    dropped_list: str | None
    """Path in `quarantine/` of the list of all of them."""
    versions: dict[str, str]
    outputs: tuple[Output, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ShardRecord":
        return cls(**content | {"outputs": tuple(map(Output.from_dict, content["outputs"]))})

    @property
    def files(self) -> list[FileRecord]:
        return [file for output in self.outputs for file in output.files]

    @property
    def marker(self) -> str:
        """Name of its marker in `.done/`."""
        return marker_name(self.shard, self.fingerprint)


def marker(run: Run, shard: int, fingerprint: str) -> str:
    """URL of the marker of an input shard."""
    return storage.join(run.shards, MARKERS, marker_name(shard, fingerprint))


def marker_name(shard: int, fingerprint: str) -> str:
    return f"{shard_name(shard)}-{fingerprint}.json"


def done_shards(run: Run) -> list[tuple[int, str]]:
    """Number and fingerprint of each shard with a committed marker, in order. It takes one listing."""
    names = storage.list_names(storage.join(run.shards, MARKERS))
    return sorted((int(match[1]), match[2]) for match in map(_MARKER_NAME.fullmatch, names) if match)


def read_record(run: Run, shard: int, fingerprint: str) -> ShardRecord:
    """The content of a committed marker. Raises DatasetError if it is damaged."""
    url, remedy = marker(run, shard, fingerprint), f"Remove it, and write it anew: `lotlip-data shard {run.url}`."
    content = artifacts.parse_json(storage.read_bytes(url), url, remedy, error_type=DatasetError)
    try:
        return ShardRecord.from_dict(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{url}: lacks a field of a marker ({error}). {remedy}") from None


def read_index(run: Run) -> dict[str, Any]:
    """The content of dataset.json. Raises DatasetError if it is missing or damaged, or of another schema version."""
    try:
        return parse_index(run, storage.read_bytes(run.dataset))
    except FileNotFoundError:
        raise DatasetError(f"{run.dataset}: there is no dataset yet. Run `lotlip-data shard {run.url}`.") from None


def parse_index(run: Run, text: str | bytes) -> dict[str, Any]:
    """The content of a dataset.json with this text. Raises DatasetError as `read_index` does."""
    remedy = f"Remove it, and write it anew: `lotlip-data shard {run.url}`."
    content = artifacts.parse_json(text, run.dataset, remedy, error_type=DatasetError)
    if (version := content.get("schema_version")) != schema.SCHEMA_VERSION:
        raise DatasetError(
            f"{run.dataset}: has schema version {version}, this release reads "
            f"{schema.SCHEMA_VERSION}. Remove {run.shards} and run `lotlip-data shard {run.url}`."
        )
    artifacts.check_fields(content, run.dataset, remedy, _FIELDS, DatasetError)
    return content


def read_dataset_summary(run: Run) -> dict[str, Any]:
    """dataset.json with its lists empty. Raises DatasetError as `read_index` does, FileNotFoundError if missing."""
    with storage.open_read(run.dataset) as stream:
        lines = _lines(io.TextIOWrapper(stream, "utf-8", errors="surrogateescape"))
        text = "".join(line for in_list, line in lines if not in_list)
    return parse_index(run, text)


def read_records(index: Mapping[str, Any]) -> list[ShardRecord]:
    """The records of the input shards in the content of a dataset.json."""
    outputs: dict[int, list[dict[str, Any]]] = {content["shard"]: [] for content in index["inputs"]}
    for list_name in SPLITS.values():
        for output in index[list_name]:
            outputs[output["input"]].append(output)
    return [ShardRecord.from_dict(content | {"outputs": outputs[content["shard"]]}) for content in index["inputs"]]


def entries(body: Path) -> Iterator[Any]:
    """The entries of all lists in a file with the layout of dataset.json, in order."""
    with open(body, encoding="utf-8") as file:
        for in_list, line in _lines(file):
            if in_list:
                yield json.loads(line.rstrip(",\n"))


def _lines(file: Iterable[str]) -> Iterator[tuple[bool, str]]:
    """Each line, and whether it is an entry of a list."""
    in_list = False
    for line in file:
        in_list = in_list and not line.startswith(LIST_CLOSING)
        yield in_list, line
        in_list = in_list or line in _LIST_OPENINGS
