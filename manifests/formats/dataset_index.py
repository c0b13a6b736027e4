"""Reads dataset.json, the index of a dataset, and the markers of its shards.

dataset.json has what applies to the whole dataset first, and then lists with one entry per shard, one entry per line.
The layout serves only to save memory: `read_dataset_summary` and `iter_entries` read the index of 100 million images,
20,000 entries, without holding it. Readers of the whole index accept any layout.

`pipeline/dataset/metadata.py` writes dataset.json.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lotlip_data.manifests import artifacts, digests, storage
from lotlip_data.manifests.digests import Digest, DigestMismatch
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.formats.dataset_schema import DatasetIndex, Marker, SamplesIndex
from lotlip_data.manifests.run_layout import DATASET_JSON as DATASET_JSON
from lotlip_data.manifests.run_layout import MARKERS as MARKERS
from lotlip_data.manifests.run_layout import Run, shard_name

CARD, CROISSANT = "README.md", "croissant.json"
SPLITS = {"train": "shards", "validation": "validation"}
"""The splits, and the lists of dataset.json that name their files."""
CHOSEN = "captioners_chosen"
"""The field of dataset.json that is true if `shard` was given other captioners than its default."""
INPUTS, REPLACED = "inputs", "replaced"
"""The lists of input shards and of files of earlier versions in dataset.json."""
SHARD_LISTS = (INPUTS, *SPLITS.values())
LIST_END = " ]"
"""The line after the last entry of a list."""

Index = TypeVar("Index", DatasetIndex, SamplesIndex)

_LIST_STARTS = {f' "{name}": [\n'.encode() for name in (*SHARD_LISTS, REPLACED)}
_SHA256_LINE = re.compile(rb' "' + digests.JSON_KEY.encode() + rb'": "([0-9a-f]{64})"\n')
_MARKER = re.compile(r"(\d{5,})-([0-9a-f]{12})\.json")
_INPUT_SHARD = re.compile(r"[a-z]+-(\d{5,})[-.]")
_FILE_NAME = re.compile(r"\w[\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DatasetError(UserError):
    """The dataset is missing or damaged, or lacks what is needed of it; the message says what to do."""


@dataclass(frozen=True)
class FileRecord:
    """One committed file of the dataset."""

    name: str
    bytes: int
    """Its size."""
    sha256: str

    @property
    def digest(self) -> Digest:
        return Digest(self.bytes, self.sha256)


@dataclass(frozen=True)
class ShardFile:
    """A tar and its Parquet file, with the same samples in the same order, all of one input shard and one split.

    If the manifest limits the size of a tar, an input shard has several of them per split.
    """

    split: str
    samples: int
    """The number of samples."""
    long_texts: dict[str, int]
    """The number of samples with a long text, by captioner."""
    tar: FileRecord
    parquet: FileRecord
    folder: str = dataclasses.field(compare=False)
    """The folder of both files, as a path or URL. Not part of dataset.json."""

    def to_dict(self) -> dict[str, Any]:
        """The entry of dataset.json."""
        content = dataclasses.asdict(self)
        del content["folder"]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], folder: str) -> "ShardFile":
        tar, parquet = (FileRecord(**content[kind]) for kind in ("tar", "parquet"))
        return cls(content["split"], content["samples"], content["long_texts"], tar, parquet, folder)

    @property
    def input_shard(self) -> int | None:
        """The number of the input shard, which the names of the files have; None if they have none."""
        match = _INPUT_SHARD.match(self.tar.name)
        return int(match[1]) if match else None

    @property
    def files(self) -> tuple[FileRecord, FileRecord]:
        return self.tar, self.parquet

    @property
    def sha256(self) -> str:
        """The sha256 of the tar."""
        return self.tar.sha256

    @property
    def tar_url(self) -> str:
        return storage.join(self.folder, self.tar.name)

    @property
    def parquet_url(self) -> str:
        return storage.join(self.folder, self.parquet.name)


@dataclass(frozen=True)
class ShardRecord:
    """The content of the marker of one input shard: its files, and the counts of all images that went in."""

    shard: int
    fingerprint: str
    """Identifies everything that the shard is built from."""
    recipe: str
    """Identifies the captioners and the settings of the dataset."""
    fetched: int
    """The number of downloaded images."""
    samples: int
    """The number of samples."""
    dropped: dict[str, int]
    """Samples left out, by reason."""
    dropped_texts: dict[str, dict[str, int]]
    """Texts left out of samples that stay: by `raw` or captioner, and by reason."""
    dropped_list: str | None
    """The file in `quarantine/` that lists them all."""
    versions: dict[str, str]
    """Versions of the packages that decide the bytes of the files."""
    outputs: tuple[ShardFile, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of the marker."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return content | {"outputs": [output.to_dict() for output in self.outputs]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], folder: str) -> "ShardRecord":
        outputs = tuple(ShardFile.from_dict(output, folder) for output in content["outputs"])
        return cls(**dict(content) | {"outputs": outputs})

    @property
    def files(self) -> list[FileRecord]:
        return [file for output in self.outputs for file in output.files]

    @property
    def marker(self) -> str:
        """The name of the marker in `.done/`."""
        return marker_name(self.shard, self.fingerprint)


def marker(run: Run, shard: int, fingerprint: str) -> str:
    """The URL of a marker."""
    return run.shard_marker(marker_name(shard, fingerprint))


def marker_name(shard: int, fingerprint: str) -> str:
    return f"{shard_name(shard)}-{fingerprint}.json"


def done_shards(run: Run) -> list[tuple[int, str]]:
    """The shards with a committed marker, with their fingerprints, in order. One listing."""
    matches = map(_MARKER.fullmatch, storage.list_names(run.shard_markers))
    return sorted((int(match[1]), match[2]) for match in matches if match)


def read_record(run: Run, shard: int, fingerprint: str) -> ShardRecord:
    """The content of a committed marker. Raises DatasetError if it is damaged."""
    url = marker(run, shard, fingerprint)
    content = artifacts.read_json(url, _rebuild_remedy(run), Marker, DatasetError)
    return ShardRecord.from_dict(content, run.shards)


def read_index(run: Run) -> dict[str, Any]:
    """The content of dataset.json. Raises DatasetError if it is missing or damaged."""
    return dict(_parse_index(run, _read(run), DatasetIndex))


def read_samples_index(run: Run) -> dict[str, Any]:
    """As `read_index`, for a dataset.json that need not have more than the captioners and the shards."""
    return dict(_parse_index(run, _read(run), SamplesIndex))


def _read(run: Run) -> bytes:
    try:
        return storage.read_bytes(run.dataset)
    except FileNotFoundError:
        raise _missing(run) from None


def shard_files(run: Run, content: Mapping[str, Any]) -> list[ShardFile]:
    """The files of all splits that hold samples, from the content of dataset.json.

    Raises DatasetError if an entry is damaged or names a file outside the folder of the dataset.
    """
    files = [
        ShardFile.from_dict({"split": split, "long_texts": {}} | entry, run.shards)
        for split, name in SPLITS.items()
        for entry in content.get(name, ())
        if entry["samples"]
    ]
    for file in (file for shard_file in files for file in shard_file.files):
        if not _FILE_NAME.fullmatch(file.name):
            raise DatasetError(f"{run.dataset}: names a file outside its folder: {file.name!r}")
        if not _SHA256.fullmatch(file.sha256):
            raise DatasetError(f"{run.dataset}: has no sha256 of {file.name}. {_rebuild_remedy(run)}")
    return files


def read_dataset_summary(run: Run) -> dict[str, Any]:
    """dataset.json without the entries of its lists. Raises DatasetError if it is missing or damaged."""
    try:
        stream = storage.open_read(run.dataset)
    except FileNotFoundError:
        raise _missing(run) from None
    with stream:
        try:
            text = _without_entries(stream)
        except DigestMismatch as error:
            raise DatasetError(f"{run.dataset}: {error}. {_rebuild_remedy(run)}") from None
    return dict(_parse_index(run, text, DatasetIndex))


def _without_entries(stream: Iterable[bytes]) -> bytes:
    """dataset.json without the entries of its lists, and without its sha256, with which it is compared."""
    sha256, kept = hashlib.sha256(), list[bytes]()
    line = b""
    for is_entry, next_line in _lines(stream):
        if match := _SHA256_LINE.fullmatch(next_line):
            kept[-1] = line = line.rstrip().removesuffix(b",")
            sha256.update(line)
            if sha256.hexdigest().encode() != match[1]:
                raise DigestMismatch(digests.MISMATCH)
            line = b""
            continue
        sha256.update(line)
        line = next_line
        if not is_entry:
            kept.append(line)
    return b"".join(kept)


def read_records(run: Run, content: Mapping[str, Any]) -> list[ShardRecord]:
    """The input shards with their files, from the content of dataset.json. Raises DatasetError if they do not fit."""
    outputs: dict[int, list[Any]] = {entry["shard"]: [] for entry in content[INPUTS]}
    try:
        for name in SPLITS.values():
            for output in content[name]:
                outputs[output["input"]].append(output)
        return [
            ShardRecord.from_dict(entry | {"outputs": outputs[entry["shard"]]}, run.shards) for entry in content[INPUTS]
        ]
    except KeyError as error:
        raise DatasetError(
            f"{run.dataset}: an entry of its files has no {error}, or one that is none of `{INPUTS}`. "
            f"{_rebuild_remedy(run)}"
        ) from None


def iter_entries(index: Path) -> Iterator[Any]:
    """The entries of all lists of a local dataset.json with one entry per line, one list after the other."""
    with open(index, "rb") as file:
        for is_entry, line in _lines(file):
            if is_entry:
                yield json.loads(line.rstrip(b",\n"))


def _lines(file: Iterable[bytes]) -> Iterator[tuple[bool, bytes]]:
    """Each line, and whether it is an entry of a list."""
    in_list = False
    for line in file:
        in_list = in_list and not line.startswith(LIST_END.encode())
        yield in_list, line
        in_list = in_list or line in _LIST_STARTS


def _parse_index(run: Run, text: bytes, fields: type[Index]) -> Index:
    remedy = _rebuild_remedy(run)
    content = artifacts.parse_json(text, run.dataset, remedy, artifacts.JsonObject, DatasetError)
    if (version := content.get("schema_version")) != schema.SCHEMA_VERSION:
        raise DatasetError(
            f"{run.dataset}: has schema version {version}, but this release reads version {schema.SCHEMA_VERSION}. "
            f"Remove {run.shards} and run `lotlip-data shard {run.url}`."
        )
    return artifacts.validate(content, run.dataset, remedy, fields, DatasetError)


def _missing(run: Run) -> DatasetError:
    return DatasetError(f"{run.dataset}: the run has no dataset yet. Run `lotlip-data shard {run.url}`.")


def _rebuild_remedy(run: Run) -> str:
    return f"Remove it and run `lotlip-data shard {run.url}`, which writes it again."
