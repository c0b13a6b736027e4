"""The shard stage: images and their captions become the dataset, shard by shard, each with one marker created last.

What each shard of the dataset is made from, as a fingerprint: where it is the same, the shard is not built again.
"""

import io
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts, dataset_index, schema, storage
from lotlip_data.manifests.artifacts import digest
from lotlip_data.manifests.dataset_index import DatasetError, Output, ShardRecord
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.schema import KIND as IMPORTED
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import captioned_shards, fetched_shards
from lotlip_data.pipeline.core.ledger import captioners as found_captioners
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks
from lotlip_data.pipeline.curation.exclusions import find_exclusions, read_list
from lotlip_data.pipeline.curation.filters import IMAGE_CHANGED, Filters
from lotlip_data.pipeline.dataset import metadata
from lotlip_data.pipeline.dataset import writer as outputs
from lotlip_data.pipeline.dataset.join import Captions, Drops, Joined, join
from lotlip_data.pipeline.dataset.metadata import Recipe
from lotlip_data.pipeline.dataset.publish import publish, published
from lotlip_data.pipeline.dataset.writer import DamagedShard, ImageTar, open_local
from lotlip_data.pipeline.downloading.reader import refetch_remedy

logger = logging.getLogger(__name__)


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

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"dropped": dict(self.dropped)}  # asdict would spoil a Counter


def shard(manifest: Manifest, run: Run, captioners: Sequence[str] = ()) -> ShardSummary:
    """Build every shard whose images and whose captions by all of `captioners` are committed, on Ray.

    Without `captioners`, all that the run has captions by. A shard that was built from the same before is left as it
    is; any other is built beside what it replaces. dataset.json is written when nothing failed and nothing is missing:
    until then it names the dataset as it was. Raises DatasetError where nothing is fetched or captioned.
    """
    fetched = fetched_shards(run)
    if not fetched:
        raise DatasetError(f"{run.url}: no images here yet. Run `lotlip-data download` first.")
    recipe = recipe_of(run, manifest, captioners)
    if changes := _changes(run, recipe):
        logger.info(f"the dataset is made otherwise from now on: {'; '.join(changes)}")
    drops, unseen = find_exclusions(run, manifest.clean, recipe.rules)
    ready, missing = _ready(run, fetched, list(recipe.captioners))
    for line in missing:
        logger.info(line)
    every = plan_builds(run, recipe, fetched, drops)
    done = set(dataset_index.done_shards(run))
    left = [unit for unit in every if (unit.shard, unit.fingerprint) not in done]
    summary = ShardSummary(skipped=len(every) - len(left))
    work = [] if unseen else [unit for unit in left if unit.shard in ready]
    del done  # the larger part of what is known of a shard that there is no work on
    summary.failed = unseen + missing
    _build_all(run, recipe, work, summary)
    if not summary.failed:
        changed: Counter[tuple[str, int]] = Counter()
        summary.published = publish(run, manifest, recipe, _noting(changed, _records(run, every)))
        if changed:
            logger.info(_of_changed_images(run, changed))
    return summary


def recipe_of(run: Run, manifest: Manifest, captioners: Sequence[str] = ()) -> Recipe:
    """How the run's dataset is to be made; without `captioners`, with all that the run has captions by."""
    names = captioners or found_captioners(run)
    return Recipe({name: _captioner_id(run, name) for name in names}, Filters.of(manifest))


def _changes(run: Run, recipe: Recipe) -> list[str]:
    """In which settings the dataset that is there differs."""
    before = published(run)
    return metadata.differences(before, recipe) if before is not None else []


@dataclass(frozen=True, slots=True)
class BuildTask:
    """One shard to build. `drops` names its list in `clean/`: the images left out for the sake of others."""

    shard: int
    fingerprint: str
    drops: str | None = None


def _records(run: Run, every: Sequence[BuildTask]) -> Iterator[ShardRecord]:
    return map_ordered(lambda unit: dataset_index.read_record(run, unit.shard, unit.fingerprint), every)


def _noting(changed: Counter[tuple[str, int]], records: Iterable[ShardRecord]) -> Iterator[ShardRecord]:
    """The records; counts by captioner and shard the captions that lack because their images have changed."""
    for record in records:
        for what, counts in record.dropped_texts.items():
            if IMAGE_CHANGED in counts:
                changed[what, record.shard] += counts[IMAGE_CHANGED]
        yield record


def _of_changed_images(run: Run, changed: Mapping[tuple[str, int], int]) -> str:
    """What is to be done about captions that were left out."""
    files = [run.caption_shard(*which) for which in sorted(changed)]
    more = f" (and {len(files) - 5} more, told by `dropped_texts` in {run.dataset})" if len(files) > 5 else ""
    again = dict.fromkeys(_caption_again(run, name) for name, _ in sorted(changed))
    return (
        f"{sum(changed.values()):,} captions are left out ({IMAGE_CHANGED}): their images were fetched again since, "
        f"and are of other bytes. To caption them anew, remove {', '.join(files[:5])}{more}, and run "
        f"{' and '.join(again)}, then `lotlip-data shard {run.url}`"
    )


def _caption_again(run: Run, name: str) -> str:
    """The command that makes captions which are missing."""
    if ledger.captioner_settings(run, name).get("kind") == IMPORTED:
        return "`lotlip-data import` of the same table"
    return f"`lotlip-data recaption {run.url}`"


def _captioner_id(run: Run, name: str) -> str:
    try:
        return str(ledger.captioner_settings(run, name)["id"])
    except FileNotFoundError:
        raise DatasetError(f"{run.url}: no captions by {name} yet. Run `lotlip-data recaption {run.url}`.") from None


def _ready(run: Run, fetched: Iterable[int], captioners: Sequence[str]) -> tuple[set[int], list[str]]:
    """The shards that can be built, and what the others lack."""
    fetched = set(fetched)
    listed = {int(name.removesuffix(".parquet")) for name in storage.list_names(run.lists, ".parquet")}
    ready, missing = set(fetched), []
    if absent := listed - fetched:
        missing.append(f"missing: images of {_some(absent)}: run `lotlip-data download` again")
    for name in captioners:
        if absent := fetched - set(captioned_shards(run, name)):
            missing.append(f"missing: captions by {name} of {_some(absent)}: run {_caption_again(run, name)}")
            ready -= absent
    return ready, missing


def _some(shards: set[int]) -> str:
    names = [shard_name(shard) for shard in sorted(shards)[:5]]
    return f"{len(shards)} shards ({', '.join(names)}{', …' if len(shards) > 5 else ''})"


def _build_all(run: Run, recipe: Recipe, work: list[BuildTask], summary: ShardSummary) -> None:
    for unit, result in run_ray_tasks(partial(build_shard, run, recipe), work):
        name = shard_name(unit.shard)
        if isinstance(result, ShardRecord):
            summary.built += 1
            summary.samples += result.samples
            summary.dropped.update(result.dropped)
            drops = "".join(f", {count} left out ({reason})" for reason, count in result.dropped.items())
            logger.info(f"shard {name}: {result.samples} samples{drops} ({summary.built} of {len(work)})")
        else:
            reason = one_line(result)
            summary.failed.append(f"shard {name}: {reason}")
            logger.warning(f"shard {name} could not be built: {reason}")


def build_shard(run: Run, recipe: Recipe, unit: BuildTask) -> ShardRecord:
    """Join, write and commit one shard, its marker last; returns what the marker says. Needs no Ray.

    Raises JoinError where images and captions do not belong together, another UserError where an input cannot be read.
    """
    number = unit.shard
    with tempfile.TemporaryDirectory(prefix="lotlip-data-shard-") as scratch:
        fetched = ledger.read_image_stats(run, number)
        if not fetched["successes"]:
            return _commit(run, recipe, unit, Joined(), [])
        captions = {name: read_captions(run, name, number) for name in recipe.captioners}
        with ExitStack() as opened:
            images = _images(run, number, fetched, Path(scratch), opened)
            joined = join(images.metas.values(), captions, recipe.rules, _drops(run, unit, images.metas))
            columns = schema.dataset(recipe.captioners)
            files = outputs.write(run.shards, number, recipe, joined.rows, images.image, columns, Path(scratch))
        return _commit(run, recipe, unit, joined, files)


def _images(run: Run, number: int, fetched: Mapping[str, Any], scratch: Path, opened: ExitStack) -> ImageTar:
    """The images that a marker tells of. Raises DamagedShard where they are not there as it says."""
    url = storage.join(run.images, fetched["tar"])
    try:
        images = ImageTar(opened.enter_context(open_local(url, scratch)), url)
    except DamagedShard as error:
        raise DamagedShard(f"{error}. {refetch_remedy(run, number)}") from error
    if len(images.metas) != fetched["successes"]:
        raise DamagedShard(
            f"{url}: holds {len(images.metas)} images, its marker says {fetched['successes']}. "
            f"{refetch_remedy(run, number)}"
        )
    return images


def read_captions(run: Run, name: str, number: int) -> Captions:
    """The captions of one shard. Raises what `parquet_object.read` raises."""
    url = run.caption_shard(name, number)

    def remedy() -> str:
        return f"Remove {url}, and run {_caption_again(run, name)} again."

    return Captions(artifacts.read_parquet(url, remedy(), ["uid", "sha256", "text", "flags"]), url, remedy)


def _drops(run: Run, unit: BuildTask, keys: Iterable[str]) -> Drops:
    """By key, what is left out of this shard for the sake of other images."""
    if unit.drops is None:
        return {}
    by_row, digits = read_list(run, unit.drops), len(shard_name(unit.shard))
    return {key: by_row[row] for key in keys if (row := int(key[digits:])) in by_row}


def _commit(run: Run, recipe: Recipe, unit: BuildTask, joined: Joined, files: Sequence[Output]) -> ShardRecord:
    """The list of what was left out first, then the marker: what it counts can be read."""
    name = None
    if joined.dropped:
        name = f"shard/{shard_name(unit.shard)}-{unit.fingerprint}.parquet"
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(joined.dropped, schema=schema.DROPPED), buffer, compression="zstd")
        storage.create(run.quarantine(name), buffer.getvalue())
    record = metadata.record_of(unit.shard, unit.fingerprint, recipe, joined, files, name)
    marker = dataset_index.marker(run, unit.shard, unit.fingerprint)
    if storage.create(marker, json.dumps(record.to_dict()).encode()):
        return record
    return dataset_index.read_record(run, unit.shard, unit.fingerprint)  # another driver's, which counts


def plan_builds(
    run: Run, recipe: Recipe, shards: Iterable[int], drops: Mapping[int, str] | None = None
) -> list[BuildTask]:
    """The shards with their fingerprints: recipe, images, captions and what is dropped. One listing a folder."""
    shards = list(shards)

    def stamps(folder: str, ending: str) -> list[str | None]:
        held = storage.list_stamps(folder, ending)
        return [held.get(f"{shard_name(shard)}{ending}") for shard in shards]

    images = stamps(run.images, "_stats.json")
    captions = [stamps(run.captioner(name), ".parquet") for name in recipe.captioners]
    found = []
    for shard, image, *texts in zip(shards, images, *captions, strict=True):
        dropped = (drops or {}).get(shard)
        found.append(BuildTask(shard, digest(recipe.id, image, texts, dropped), dropped))
    return found
