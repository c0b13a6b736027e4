"""The shard stage: images and their captions become the dataset, shard by shard, each with one marker created last."""

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lotlip_data.manifests import schema, storage
from lotlip_data.manifests.layout import Run, shard_name
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.pipeline import dataset
from lotlip_data.pipeline.dataset import DatasetError, Recipe, ShardRecord
from lotlip_data.pipeline.join import Captions, Joined, Rules, join
from lotlip_data.pipeline.ledger import captioned_shards, fetched_shards
from lotlip_data.pipeline.ledger import captioners as found_captioners
from lotlip_data.pipeline.shard_files import DamagedShard, FileRecord, ImageTar, SampleWriter, commit_file, open_local
from lotlip_data.pipeline.tasks import brief, run_tasks


@dataclass
class ShardSummary:
    """What one call did: shards that were `skipped` as committed, and those `built` now with their counts."""

    skipped: int = 0
    built: int = 0
    samples: int = 0
    """In the shards built now."""
    dropped: Counter[str] = field(default_factory=Counter)
    """By reason, in the shards built now."""
    failed: list[str] = field(default_factory=list)
    """What could not be built: each with its reason, or with what is missing and the command that brings it."""
    published: bool = False
    """Whether dataset.json was written or changed."""

    @property
    def nothing_to_do(self) -> bool:
        return not (self.built or self.failed or self.published)

    def figures(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def shard(
    manifest: Manifest, run: Run, say: Callable[[str], None] = print, captioners: Sequence[str] = ()
) -> ShardSummary:
    """Build every shard whose images and whose captions by all of `captioners` are committed, on Ray.

    Without `captioners`, all that the run has captions by. dataset.json is written when nothing failed and nothing is
    missing. Raises DatasetError where nothing is fetched or captioned, or where the folder holds a dataset that is
    made otherwise.
    """
    fetched = fetched_shards(run)
    if not fetched:
        raise DatasetError(f"{run.url}: no images here yet. Run `lotlip-data download` first.")
    rules = Rules(manifest.shard.sub_captions, manifest.shard.min_long_texts)
    recipe = Recipe({name: _captioner_id(run, name) for name in captioners or found_captioners(run)}, rules)
    dataset.claim(run, recipe)
    ready, missing = _ready(run, fetched, list(recipe.captioners))
    done = set(dataset.done_shards(run))
    summary = ShardSummary(skipped=len(done), failed=missing)
    for line in missing:
        say(line)
    if work := [shard for shard in ready if shard not in done]:
        _build_all(run, recipe, work, summary, say)
    if not summary.failed:
        records = [dataset.read_record(run, shard) for shard in fetched]
        summary.published = dataset.publish(run, dataset.describe(run, manifest, recipe, records))
    return summary


def _captioner_id(run: Run, name: str) -> str:
    try:
        return str(json.loads(storage.read_bytes(run.captioner_settings(name)))["id"])
    except FileNotFoundError:
        raise DatasetError(f"{run.url}: no captions by {name} yet. Run `lotlip-data recaption {run.url}`.") from None


def _ready(run: Run, fetched: Iterable[int], captioners: Sequence[str]) -> tuple[list[int], list[str]]:
    """The shards that can be built, and what the others lack."""
    fetched = set(fetched)
    listed = {int(name.removesuffix(".parquet")) for name in storage.list_names(run.lists) if name.endswith(".parquet")}
    ready, missing = set(fetched), []
    if absent := listed - fetched:
        missing.append(f"missing: images of {_some(absent)}: run `lotlip-data download` again")
    for name in captioners:
        if absent := fetched - set(captioned_shards(run, name)):
            missing.append(f"missing: captions by {name} of {_some(absent)}: run `lotlip-data recaption {run.url}`")
            ready -= absent
    return sorted(ready), missing


def _some(shards: set[int]) -> str:
    names = [shard_name(shard) for shard in sorted(shards)[:5]]
    return f"{len(shards)} shards ({', '.join(names)}{', …' if len(shards) > 5 else ''})"


def _build_all(run: Run, recipe: Recipe, work: list[int], summary: ShardSummary, say: Callable[[str], None]) -> None:
    for number, result in run_tasks(partial(build_shard, run, recipe), work):
        name = shard_name(number)
        if isinstance(result, ShardRecord):
            summary.built += 1
            summary.samples += result.samples
            summary.dropped.update(result.dropped)
            drops = "".join(f", {count} left out ({reason})" for reason, count in result.dropped.items())
            say(f"shard {name}: {result.samples} samples{drops} ({summary.built} of {len(work)})")
        else:
            reason = brief(result)
            summary.failed.append(f"shard {name}: {reason}")
            say(f"shard {name} could not be built: {reason}")


def build_shard(run: Run, recipe: Recipe, number: int) -> ShardRecord:
    """Join, write and commit one shard, its marker last; returns what the marker says. Needs no Ray.

    Raises JoinError where images and captions do not belong together, DamagedShard where an input cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="lotlip-data-shard-") as scratch:
        fetched = json.loads(storage.read_bytes(run.image_stats(number)))
        if not fetched["successes"]:
            return _commit(run, recipe, number, Joined(), [])
        url = storage.join(run.images, fetched["tar"])
        captions = {name: read_captions(run.caption_shard(name, number)) for name in recipe.captioners}
        with open_local(url, Path(scratch)) as stream:
            images = ImageTar(stream, url)
            if len(images.metas) != fetched["successes"]:
                raise DamagedShard(
                    f"{url}: holds {len(images.metas)} images, its marker says {fetched['successes']}. Remove "
                    f"{run.image_stats(number)} and the shard's captions, and run `lotlip-data download` again."
                )
            joined = join(images.metas.values(), captions, recipe.rules)
            files = _write(run, recipe, number, joined, images, Path(scratch))
        return _commit(run, recipe, number, joined, files)


def read_captions(url: str) -> Captions:
    """The captions of one shard. Raises DamagedShard where the Parquet cannot be read."""
    try:
        with storage.open_read(url) as stream:
            table = pq.read_table(stream, columns=["uid", "sha256", "text", "flags"])
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DamagedShard(f"{url}: cannot be read: {error}") from error
    return Captions(table, url)


def _write(run: Run, recipe: Recipe, number: int, joined: Joined, images: ImageTar, scratch: Path) -> list[FileRecord]:
    """Write and commit the tar and the Parquet; nothing where no sample is left."""
    if not joined.rows:
        return []
    names = [dataset.file_name(number, ending) for ending in ("tar", "parquet")]
    tar, parquet = (scratch / name for name in names)
    with SampleWriter(tar, parquet, schema.dataset(recipe.captioners)) as writer:
        for row in joined.rows:
            writer.write(row, images.image(row["key"]))
    return [commit_file(run.shards, name, scratch / name) for name in names]


def _commit(run: Run, recipe: Recipe, number: int, joined: Joined, files: Sequence[FileRecord]) -> ShardRecord:
    """The quarantine list first, then the marker: what it counts as left out can be read."""
    if joined.dropped:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in joined.dropped)
        storage.replace(run.quarantine("shard", f"{shard_name(number)}.jsonl"), lines.encode())
    else:
        storage.remove(run.quarantine("shard", f"{shard_name(number)}.jsonl"))
    record = dataset.record_of(number, recipe, joined, files)
    storage.create(dataset.marker(run, number), json.dumps(dataclasses.asdict(record)).encode())
    return record
