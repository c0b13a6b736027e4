"""dataset.json, made and compared entry by entry: of 100 million images it has 20,000 entries, 10 MB of text.

What is said of the whole comes first, then lists with an entry for each shard, one a line. The lines are for the sake
of memory only: laid out otherwise, dataset.json says the same.
"""

import dataclasses
import io
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lotlip_data.manifests import schema, storage
from lotlip_data.manifests.layout import Run
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.pipeline import dataset
from lotlip_data.pipeline.dataset import PACKAGES, SPLITS, Recipe, ShardRecord

INPUTS, REPLACED = "inputs", "replaced"
_LISTS = (INPUTS, *SPLITS.values())
_OPENING = {f' "{name}": [\n' for name in (*_LISTS, REPLACED)}
_CLOSING = " ]"


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
        lists = {name: _Lines(files.enter_context(open(folder / name, "w+", encoding="utf-8"))) for name in _LISTS}
        for record in records:
            sums.add(record)
            content = record.to_dict()
            for output in content.pop("outputs"):
                tars[output["split"]].append(output["tar"]["name"])
                lists[SPLITS[output["split"]]].add({"input": record.shard} | output)
            lists[INPUTS].add(content)
        head = json.loads(json.dumps(sums.head(manifest, recipe)))
        body = files.enter_context(open(folder / dataset.DATASET_JSON, "w", encoding="utf-8"))
        body.write(json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}"))
        for name, entries in lists.items():
            body.write(f',\n "{name}": [')
            entries.file.seek(0)
            shutil.copyfileobj(entries.file, body)
            body.write("\n" + _CLOSING)
    return Description(head, tars), folder / dataset.DATASET_JSON


def finish(body: Path, replaced: Iterable[str]) -> None:
    """Write the rest of dataset.json: names of what an earlier one consisted of."""
    with open(body, "a", encoding="utf-8") as file:
        file.write(f',\n "{REPLACED}": [')
        lines = _Lines(file)
        for name in replaced:
            lines.add(name)
        file.write(f"\n{_CLOSING}\n}}\n")


def entries(body: Path) -> Iterator[Any]:
    """Those of all lists in a file that `write` and `finish` have written, one after the other."""
    with open(body, encoding="utf-8") as file:
        for within, line in _lines(file):
            if within:
                yield json.loads(line.rstrip(",\n"))


def head(run: Run) -> dict[str, Any]:
    """dataset.json without the entries of its lists. Raises DatasetError as `dataset.read` does."""
    with storage.open_read(run.dataset) as stream:
        lines = _lines(io.TextIOWrapper(stream, "utf-8", errors="surrogateescape"))
        text = "".join(line for within, line in lines if not within)
    return dataset.parsed(run, text)


def _lines(file: Iterable[str]) -> Iterator[tuple[bool, str]]:
    """Each line, and whether it is within one of the lists."""
    within = False
    for line in file:
        within = within and not line.startswith(_CLOSING)
        yield within, line
        within = within or line in _OPENING


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
