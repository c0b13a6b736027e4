"""The shard stage: joins images and captions into the dataset, shard by shard; each shard's marker is created last.

A shard is identified by a fingerprint of everything that it is built from. If the fingerprint has a marker, the shard
is not built again. So shards are built as they come while the stages before still work (`following`), and the stage
itself finds them built.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from lotlip_data.manifests import artifacts, storage, wording
from lotlip_data.manifests.formats import dataset_index, schema, score_file
from lotlip_data.manifests.formats.dataset_index import DatasetError, ShardFile, ShardRecord
from lotlip_data.manifests.formats.tar_reader import open_seekable
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import SHOWN_BY_BAR, progress_bar
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.settings.structured import ColumnType
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import ImageMarker, captioned_shards, fetched_shards
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.core.upstream import NOT_YET, NotYet, Upstream
from lotlip_data.pipeline.curation.exclusions import find_exclusions, read_list
from lotlip_data.pipeline.dataset import metadata
from lotlip_data.pipeline.dataset.builds import BuildTask, plan_builds
from lotlip_data.pipeline.dataset.inputs import complete_shards, ready_shards
from lotlip_data.pipeline.dataset.join import Captions, Drops, Joined, join
from lotlip_data.pipeline.dataset.metadata import Recipe
from lotlip_data.pipeline.dataset.outdated import OutdatedCaptions, caption_command
from lotlip_data.pipeline.dataset.publish import publish, published
from lotlip_data.pipeline.dataset.recipe import recipe_of, wanted_captioners
from lotlip_data.pipeline.dataset.score_limits import resolve_scores
from lotlip_data.pipeline.dataset.scores import ShardScores
from lotlip_data.pipeline.dataset.writer import DamagedShard, ImageTar, SpooledImages, write_shard
from lotlip_data.pipeline.downloading.reader import fetched_images, refetch_remedy
from lotlip_data.pipeline.downloading.remaining import remaining
from lotlip_data.pipeline.recaptioning.prompts import recorded_fields

logger = logging.getLogger(__name__)


@dataclass
class ShardSummary:
    """The result of one call of `shard`."""

    skipped: int = 0
    """Shards that were built before."""
    built: int = 0
    """Shards that were built by this call."""
    samples: int = 0
    """Samples in the shards that were built by this call."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Samples left out of the shards that were built by this call, by reason."""
    failed: list[str] = field(default_factory=list)
    """What could not be built, each with its reason, or what is missing, each with the command that brings it."""
    published: bool = False
    """Whether dataset.json or one of its views was written."""

    @property
    def nothing_to_do(self) -> bool:
        return not (self.built or self.failed or self.published)

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"dropped": dict(self.dropped)}  # dataclasses.asdict cannot copy a Counter


@dataclass(frozen=True)
class StagesBefore:
    """The stages before this one, which may still be at work."""

    images: Upstream
    """The download."""
    captions: Upstream
    """The download and the recaption stage."""


def shard(
    manifest: Manifest, run: Run, captioners: Sequence[str] = (), before: StagesBefore | None = None
) -> ShardSummary:
    """Build every shard that has images and captions by all captioners, on Ray.

    A shard that was built from the same inputs before is skipped. Any other is built beside the files that it
    replaces. dataset.json is written if nothing failed and nothing is missing; until then it names the earlier dataset.

    Args:
        manifest: The manifest of the run.
        run: The run.
        captioners: The captioners whose texts the dataset has. Default: as in `recipe_of`.
        before: The stages before, if they may still go on: shards are then built as they come. Default: they have
            ended.

    Raises:
        DatasetError: The run has no images, no captions, or none by one of `captioners`.
    """
    with ledger.recording_stop(run.stopped("shard")):
        ahead = ShardSummary() if before is None else _build_as_they_come(manifest, run, captioners, before)
        summary = _build_dataset(manifest, run, captioners)
    if summary.failed:
        ledger.record_stop(run.stopped("shard"), "; ".join(wording.group(summary.failed, shown=1)))
    summary.skipped = max(0, summary.skipped - ahead.built)
    summary.built += ahead.built
    summary.samples += ahead.samples
    summary.dropped.update(ahead.dropped)
    return summary


def _build_as_they_come(manifest: Manifest, run: Run, captioners: Sequence[str], before: StagesBefore) -> ShardSummary:
    """Build the shards that get complete, until the stages before have ended. A shard that fails is tried again then.

    Images can only be compared with each other once all of them are there, so a `clean` section that does so makes the
    stage wait for the download.
    """
    summary = ShardSummary()
    storage.check_writable(run.shards)  # now, and not after hours of captioning
    if manifest.scores:
        logger.info("shard: the dataset has scores, so no shard is written before all captions are scored")
        before.captions.wait()
        return summary
    if manifest.clean.compares_images:
        logger.info("shard: `clean` compares images with each other, so no shard is written before the last image")
        before.images.wait()
    names = wanted_captioners(manifest, captioners)
    # Until a captioner has committed a shard, its settings can change, and the fingerprints of all shards with them.
    before.captions.wait(lambda: bool(names) and all(captioned_shards(run, name) for name in names))
    if before.captions.ended:
        return summary
    recipe = recipe_of(run, manifest, captioners)
    exclusions, unsurveyed = find_exclusions(run, manifest.clean, recipe.rules)
    if unsurveyed:
        before.captions.wait()
        return summary
    rest = remaining(run)
    arriving = _arriving(run, recipe, exclusions, before.captions)
    _build_all(run, recipe, arriving, summary, rest.shards if rest else len(fetched_shards(run)))
    return summary


def _arriving(
    run: Run, recipe: Recipe, exclusions: Mapping[int, str], upstream: Upstream
) -> "Iterator[BuildTask | NotYet]":
    """The builds of shards that have all captions and are not built, as they come. Each is handed out once."""
    handed_out = set[BuildTask]()

    def new() -> list[BuildTask]:
        complete = sorted(complete_shards(run, recipe.captioners))
        done = set(dataset_index.done_shards(run))
        tasks = plan_builds(run, recipe, complete, exclusions)
        return [task for task in tasks if (task.shard, task.fingerprint) not in done and task not in handed_out]

    while True:
        if upstream.is_due():
            tasks = upstream.look(new)
            handed_out.update(tasks)
            yield from tasks
        if upstream.ended:
            return
        yield NOT_YET


def _build_dataset(manifest: Manifest, run: Run, captioners: Sequence[str]) -> ShardSummary:
    """Build the shards that are not built, and publish the dataset."""
    fetched = fetched_shards(run)
    if not fetched:
        raise DatasetError(f"{run.url}: no images here yet. Run `lotlip-data download` first.")
    recipe = recipe_of(run, manifest, captioners)
    earlier = published(run)
    if earlier is not None and (changes := metadata.recipe_changes(earlier, recipe)):
        logger.info(f"dataset settings changed ({'; '.join(changes)}): affected shards are built again")
    exclusions, unsurveyed = find_exclusions(run, manifest.clean, recipe.rules)
    ready, missing = ready_shards(run, manifest, fetched, list(recipe.captioners), f"lotlip-data shard {run.url}")
    scores = resolve_scores(run, manifest, recipe.captioners, recipe.json_captioners, ledger.shards_with_images(run))
    recipe = replace(recipe, scores=scores.recipe)
    unscored = scores.missing if not missing else []  # what is missing before the scores is missing in them too
    for line in missing + unscored:
        logger.info(line)
    tasks = plan_builds(run, recipe, fetched, exclusions, scores.files)
    done = set(dataset_index.done_shards(run))
    pending = [task for task in tasks if (task.shard, task.fingerprint) not in done]
    summary = ShardSummary(skipped=len(tasks) - len(pending), failed=unsurveyed + missing + unscored)
    del done, earlier  # most of the memory of a large run
    to_build = [] if unsurveyed or scores.missing else [task for task in pending if task.shard in ready]
    _build_all(run, recipe, to_build, summary, len(to_build))
    if not summary.failed:
        outdated = OutdatedCaptions()
        chosen = bool(captioners) and list(recipe.captioners) != list(recipe_of(run, manifest).captioners)
        records = _count_outdated(outdated, _read_records(run, tasks))
        summary.published = publish(run, manifest, recipe, records, chosen=chosen)
        for line in outdated.messages(run, "are left out", f", see `dropped_texts` in {run.dataset}"):
            logger.info(line)
    return summary


def _read_records(run: Run, tasks: Sequence[BuildTask]) -> Iterator[ShardRecord]:
    return map_ordered(lambda task: dataset_index.read_record(run, task.shard, task.fingerprint), tasks)


def _count_outdated(outdated: OutdatedCaptions, records: Iterable[ShardRecord]) -> Iterator[ShardRecord]:
    """The records, as they come. Counts the outdated captions that they leave out."""
    for record in records:
        for what, counts in record.dropped_texts.items():
            outdated.add(what, record.shard, counts)
        yield record


def _build_all(
    run: Run, recipe: Recipe, tasks: Iterable[BuildTask | NotYet], summary: ShardSummary, total: int
) -> None:
    """Build the shards on Ray and add the results to `summary`. `total`: number of shards in all."""
    if total:
        storage.check_writable(run.shards)
    with progress_bar("shard", total, "shard") as bar:
        for task, result in run_ray_tasks(partial(build_shard, run, recipe), tasks, name="shard"):
            _add_result(summary, task, result, total)
            failed = wording.count(len(summary.failed), "shard")
            bar.note(f"{summary.samples:,} samples", f"{failed} failed" if summary.failed else "")
            bar.update()


def _add_result(summary: ShardSummary, task: BuildTask, result: ShardRecord | Exception, total: int) -> None:
    name = shard_name(task.shard)
    if isinstance(result, ShardRecord):
        summary.built += 1
        summary.samples += result.samples
        summary.dropped.update(result.dropped)
        drops = "".join(f", {count} left out ({reason})" for reason, count in result.dropped.items())
        samples, built = wording.count(result.samples, "sample"), wording.count(total, "shard")
        logger.info(f"shard {name}: {samples}{drops}; {summary.built:,} of {built} done", extra=SHOWN_BY_BAR)
    else:
        reason = one_line(result)
        summary.failed.append(f"shard {name}: {reason}")
        logger.warning(f"shard {name} could not be built: {reason}")


def build_shard(run: Run, recipe: Recipe, task: BuildTask) -> ShardRecord:
    """Join, write and commit one shard, its marker last. Needs no Ray.

    Returns:
        The content of the marker.

    Raises:
        JoinError: Images and captions do not belong together.
        UserError: An input cannot be read.
    """
    number = task.shard
    with scratch_folder("shard") as scratch:
        marker = ledger.read_image_stats(run, number)
        if not marker["successes"]:
            return _commit(run, recipe, task, Joined(), [])
        captions = {name: read_captions(run, name, number, recipe.json_columns.get(name)) for name in recipe.captioners}
        with ExitStack() as open_files:
            images = _open_images(run, number, marker, scratch, open_files)
            drops = _read_drops(run, task, images.metas)
            tables = {name: score_file.read_scores(run, name, file) for name, file in task.scores}
            files_of_scores = {name: run.score_file(name, file) for name, file in task.scores}
            scores = ShardScores(recipe.scores, tables, files_of_scores)
            joined = join(images.metas.values(), captions, recipe.rules, drops, scores)
            files = write_shard(run.shards, number, recipe, joined.rows, images.image, recipe.columns, scratch)
        return _commit(run, recipe, task, joined, files)


def _open_images(
    run: Run, number: int, marker: ImageMarker, scratch: Path, open_files: ExitStack
) -> ImageTar | SpooledImages:
    """The images of a shard. Raises UserError if they are missing, damaged or too few."""
    if "tar" not in marker:
        spool = open_files.enter_context((scratch / "images").open("w+b"))
        return SpooledImages(spool, ((image.meta, image.image) for image in fetched_images(run, number)))
    url, remedy = run.image_file(marker["tar"]), refetch_remedy(run, number)
    try:
        recorded = marker.get("digests", {}).get("tar")
        opened = open_seekable(url, scratch, remedy=remedy, error_type=DamagedShard, recorded=recorded)
        stream = open_files.enter_context(opened)
    except FileNotFoundError:
        raise DamagedShard(f"{url}: is missing. {remedy}") from None
    images = ImageTar(stream, url, remedy)
    if len(images.metas) != marker["successes"]:
        raise DamagedShard(
            f"{url}: contains {len(images.metas)} images, but its marker says {marker['successes']}. {remedy}"
        )
    return images


def read_captions(run: Run, name: str, number: int, json_columns: Mapping[str, ColumnType] | None = None) -> Captions:
    """The captions of one shard by one captioner. Raises UserError if they are missing or damaged.

    Args:
        run: The run.
        name: Name of the captioner.
        number: Number of the shard.
        json_columns: As for `Captions`.
    """
    url = run.caption_shard(name, number)

    def remedy() -> str:
        return f"Remove {url}, and run {caption_command(run, name)} again."

    fields = recorded_fields(ledger.captioner_settings(run, name))
    # Files of earlier releases lack the hash, and a missing column cannot be asked for.
    columns = None if fields else ["uid", "sha256", "text", "flags", "error"]
    return Captions(artifacts.read_parquet(url, remedy(), columns), url, remedy, fields, json_columns)


def _read_drops(run: Run, task: BuildTask, keys: Iterable[str]) -> Drops:
    """The images of this shard to leave out because of other images."""
    if task.exclusions is None:
        return {}
    exclusion_by_row, digits = read_list(run, task.exclusions), len(shard_name(task.shard))
    return {key: exclusion_by_row[row] for key in keys if (row := int(key[digits:])) in exclusion_by_row}


def _commit(run: Run, recipe: Recipe, task: BuildTask, joined: Joined, files: Sequence[ShardFile]) -> ShardRecord:
    """Commit the list of what was left out, and then the marker, which counts it."""
    dropped_list = None
    if joined.dropped:
        dropped_list = f"shard/{shard_name(task.shard)}-{task.fingerprint}.parquet"
        rows = pa.Table.from_pylist(joined.dropped, schema=schema.DROPPED)
        storage.create(run.quarantine(dropped_list), artifacts.encode_parquet(rows))
    record = metadata.make_record(task.shard, task.fingerprint, recipe, joined, files, dropped_list)
    marker = dataset_index.marker(run, task.shard, task.fingerprint)
    if storage.create(marker, artifacts.encode_json(record.to_dict())):
        return record
    return dataset_index.read_record(run, task.shard, task.fingerprint)  # of another driver, which was first
