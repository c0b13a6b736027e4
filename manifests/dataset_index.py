"""TODO"""

import dataclasses
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lotlip_data.manifests import artifacts, schema, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run, shard_name

DATASET_JSON, CARD, CROISSANT = "dataset.json", "README.md", "croissant.json"
MARKERS = ".done"
SPLITS = {"train": "shards", "validation": "validation"}
"""The splits, and where dataset.json lists their files."""
_FIELDS: dict[str, type] = {
    **dict.fromkeys(("captioners", "rules", "splits", "long_texts", "dropped", "dropped_texts", "manifest"), dict),
    **dict.fromkeys(("columns", "shards", "inputs"), list),
    **dict.fromkeys(("fetched", "samples", "bytes"), int),
}
_MARKER = re.compile(r"(\d{5,})-([0-9a-f]{12})\.json")


class DatasetError(UserError):
    """The dataset is not there, or not as it was asked for; the message says what to do."""


@dataclass(frozen=True)
class FileRecord:
    """One file of the dataset as it was committed."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Output:
    """A tar and its Parquet twin: the samples of one input shard that go to one split, or as many as fit."""

    split: str
    samples: int
    long_texts: dict[str, int]
    tar: FileRecord
    parquet: FileRecord

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Output":
        files = {name: FileRecord(**content[name]) for name in ("tar", "parquet")}
        return cls(**{field.name: content[field.name] for field in dataclasses.fields(cls)} | files)

    @property
    def files(self) -> tuple[FileRecord, FileRecord]:
        return self.tar, self.parquet


@dataclass(frozen=True)
class ShardRecord:
    """What the marker of one input shard says: its files, and the counts of everything that went in."""

    shard: int
    fingerprint: str
    recipe: str
    fetched: int
    samples: int
    dropped: dict[str, int]
    """Samples left out, by reason."""
    dropped_texts: dict[str, dict[str, int]]
    """Texts left out, but with their samples: by `raw` or captioner, and by reason."""
    dropped_list: str | None
    """Where in `quarantine/` each of them is listed."""
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
        """The name of its marker in `.done/`."""
        return marker_name(self.shard, self.fingerprint)


def marker(run: Run, shard: int, fingerprint: str) -> str:
    return storage.join(run.shards, MARKERS, marker_name(shard, fingerprint))


def marker_name(shard: int, fingerprint: str) -> str:
    return f"{shard_name(shard)}-{fingerprint}.json"


def done_shards(run: Run) -> list[tuple[int, str]]:
    """The shards whose marker is committed, with their fingerprints, in order. One listing."""
    names = storage.list_names(storage.join(run.shards, MARKERS))
    return sorted((int(found[1]), found[2]) for found in map(_MARKER.fullmatch, names) if found)


def read_record(run: Run, shard: int, fingerprint: str) -> ShardRecord:
    """What a committed marker says. Raises DatasetError where it is damaged."""
    url, remedy = marker(run, shard, fingerprint), f"Remove it, and write it anew: `lotlip-data shard {run.url}`."
    content = artifacts.parse_json(storage.read_bytes(url), url, remedy, broken=DatasetError)
    try:
        return ShardRecord.from_dict(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{url}: lacks what such a marker says ({error}). {remedy}") from None


def read_index(run: Run) -> dict[str, Any]:
    """The content of dataset.json. Raises DatasetError where there is none or it is not readable."""
    try:
        return parse_index(run, storage.read_bytes(run.dataset))
    except FileNotFoundError:
        raise DatasetError(f"{run.dataset}: there is no dataset yet. Run `lotlip-data shard {run.url}`.") from None


def parse_index(run: Run, text: str | bytes) -> dict[str, Any]:
    """The content of a dataset.json of which this is the text. Raises DatasetError where it is not readable."""
    remedy = f"Remove it, and write it anew: `lotlip-data shard {run.url}`."
    content = artifacts.parse_json(text, run.dataset, remedy, broken=DatasetError)
    if (version := content.get("schema_version")) != schema.SCHEMA_VERSION:
        raise DatasetError(
            f"{run.dataset}: has schema version {version}, this release reads "
            f"{schema.SCHEMA_VERSION}. Remove {run.shards} and run `lotlip-data shard {run.url}`."
        )
    artifacts.check(content, run.dataset, remedy, _FIELDS, DatasetError)
    return content


def read_records(description: dict[str, Any]) -> list[ShardRecord]:
    """The input shards that a dataset.json describes, with their files."""
    outputs: dict[int, list[dict[str, Any]]] = {content["shard"]: [] for content in description["inputs"]}
    for where in SPLITS.values():
        for output in description[where]:
            outputs[output["input"]].append(output)
    return [ShardRecord.from_dict(one | {"outputs": outputs[one["shard"]]}) for one in description["inputs"]]


INPUTS, REPLACED = "inputs", "replaced"
_LISTS = (INPUTS, *SPLITS.values())
_OPENING = {f' "{name}": [\n' for name in (*_LISTS, REPLACED)}
_CLOSING = " ]"


def entries(body: Path) -> Iterator[Any]:
    """Those of all lists in a file that `write` and `finish` have written, one after the other."""
    with open(body, encoding="utf-8") as file:
        for within, line in _lines(file):
            if within:
                yield json.loads(line.rstrip(",\n"))


def read_dataset_summary(run: Run) -> dict[str, Any]:
    """dataset.json without the entries of its lists. Raises DatasetError as `dataset.read` does."""
    with storage.open_read(run.dataset) as stream:
        lines = _lines(io.TextIOWrapper(stream, "utf-8", errors="surrogateescape"))
        text = "".join(line for within, line in lines if not within)
    return parse_index(run, text)


def _lines(file: Iterable[str]) -> Iterator[tuple[bool, str]]:
    """Each line, and whether it is within one of the lists."""
    within = False
    for line in file:
        within = within and not line.startswith(_CLOSING)
        yield within, line
        within = within or line in _OPENING
