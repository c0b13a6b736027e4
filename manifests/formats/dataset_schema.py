"""The fields of dataset.json and their types, for its reader in `dataset_index.py`.

Other fields are allowed at the top, in the manifest and in the rules, which grow with releases.
"""

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests.subcaptions import SplitMode

_OPEN, _CLOSED = ConfigDict(extra="allow"), ConfigDict(extra="forbid")


@with_config(_CLOSED)
class FileEntry(TypedDict):
    """A `dataset_index.FileRecord`."""

    name: str
    bytes: int
    sha256: str


@with_config(_CLOSED)
class SamplesEntry(TypedDict):
    """A `dataset_index.ShardFile`, as far as a reader of the samples alone needs it."""

    input: NotRequired[int]
    split: NotRequired[str]
    samples: int
    long_texts: NotRequired[dict[str, int]]
    tar: FileEntry
    parquet: FileEntry


@with_config(_CLOSED)
class OutputEntry(TypedDict):
    """A `dataset_index.ShardFile`."""

    split: Literal["train", "validation"]
    samples: int
    long_texts: dict[str, int]
    tar: FileEntry
    parquet: FileEntry


@with_config(_CLOSED)
class InputEntry(TypedDict):
    """A `dataset_index.ShardRecord` without its files."""

    shard: int
    fingerprint: str
    recipe: str
    fetched: int
    samples: int
    dropped: dict[str, int]
    dropped_texts: dict[str, dict[str, int]]
    dropped_list: str | None
    versions: dict[str, str]


@with_config(_CLOSED)
class Marker(InputEntry):
    """The marker of an input shard: a `dataset_index.ShardRecord`."""

    outputs: list[OutputEntry]


@with_config(_OPEN)
class ScorerEntry(TypedDict):
    """A scorer whose scores the dataset has."""

    id: str
    kind: str
    scores: Literal["texts", "images"]


@with_config(_OPEN)
class Rules(TypedDict):
    """The filters of the dataset."""

    validation: float


@with_config(_OPEN)
class Source(TypedDict):
    """A source of the manifest."""

    name: str
    licence: NotRequired[str | None]
    homepage: NotRequired[str | None]


@with_config(_OPEN)
class ManifestOfRun(TypedDict):
    """The manifest of the run."""

    sources: list[Source]
    shard: dict[str, Any]
    clean: dict[str, Any]


@with_config(_OPEN)
class SamplesIndex(TypedDict):
    """dataset.json, as far as a reader of the samples alone needs it."""

    captioners: dict[str, str]
    sub_captions: SplitMode
    shards: list[SamplesEntry]
    validation: NotRequired[list[SamplesEntry]]


@with_config(_OPEN)
class DatasetIndex(TypedDict):
    """dataset.json."""

    schema_version: int
    name: str
    recipe: NotRequired[str]
    captioners: dict[str, str]
    captioners_chosen: NotRequired[bool]
    sub_captions: SplitMode
    rules: Rules
    columns: list[str]
    json_columns: NotRequired[dict[str, dict[str, Literal["string", "number", "integer", "boolean", "strings"]]]]
    scorers: NotRequired[dict[str, ScorerEntry]]
    score_limits: NotRequired[dict[str, Any]]
    fetched: int
    samples: int
    bytes: int
    splits: dict[str, dict[str, int]]
    long_texts: dict[str, int]
    dropped: dict[str, int]
    dropped_texts: dict[str, dict[str, int]]
    versions: NotRequired[dict[str, list[str]]]
    manifest: ManifestOfRun
    inputs: list[InputEntry]
    shards: list[SamplesEntry]
    validation: list[SamplesEntry]
    replaced: list[str]
