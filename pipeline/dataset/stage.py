"""The shard stage: joins images and captions into the dataset, shard by shard; each shard's marker is created last.

A shard is identified by a fingerprint of everything that it is built from. If the fingerprint has a marker, the shard
is not built again.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from lotlip_data.manifests import artifacts, storage, wording
from lotlip_data.manifests.artifacts import digest
from lotlip_data.manifests.formats import dataset_index, schema
from lotlip_data.manifests.formats.dataset_index import DatasetError, ShardFile, ShardRecord
from lotlip_data.manifests.formats.tar_reader import open_seekable
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import SHOWN_BY_BAR, progress_bar
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.settings.structured import ColumnType, StructuredOutput
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import ImageMarker, captioned_shards, fetched_shards
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.curation.exclusions import find_exclusions, read_list
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset import metadata
from lotlip_data.pipeline.dataset.join import Captions, Drops, Joined, join
from lotlip_data.pipeline.dataset.metadata import Recipe
from lotlip_data.pipeline.dataset.outdated import LISTED, OutdatedCaptions, caption_command, is_imported
from lotlip_data.pipeline.dataset.publish import publish, published
from lotlip_data.pipeline.dataset.writer import DamagedShard, ImageTar, SpooledImages, write_shard
from lotlip_data.pipeline.downloading.reader import fetched_images, refetch_remedy
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


def shard(manifest: Manifest, run: Run, captioners: Sequence[str] = ()) -> ShardSummary:
    """Build every shard that has images and captions by all captioners, on Ray.

    A shard that was built from the same inputs before is skipped. Any other is built beside the files that it
    replaces. dataset.json is written if nothing failed and nothing is missing; until then it names the earlier dataset.

    Args:
        manifest: The manifest of the run.
        run: The run.
        captioners: The captioners whose texts the dataset has. Default: as in `recipe_of`.

    Raises:
        DatasetError: The run has no images, no captions, or none by one of `captioners`.
    """
    fetched = fetched_shards(run)
    if not fetched:
        raise DatasetError(f"{run.url}: no images here yet. Run `lotlip-data download` first.")
    recipe = recipe_of(run, manifest, captioners)
    earlier = published(run)
    if earlier is not None and (changes := metadata.recipe_changes(earlier, recipe)):
        logger.info(f"dataset settings changed ({'; '.join(changes)}): affected shards are built again")
    exclusions, unsurveyed = find_exclusions(run, manifest.clean, recipe.rules)
    ready, missing = ready_shards(run, manifest, fetched, list(recipe.captioners), f"lotlip-data shard {run.url}")
    for line in missing:
        logger.info(line)
    tasks = plan_builds(run, recipe, fetched, exclusions)
    done = set(dataset_index.done_shards(run))
    pending = [task for task in tasks if (task.shard, task.fingerprint) not in done]
    summary = ShardSummary(skipped=len(tasks) - len(pending), failed=unsurveyed + missing)
    del done, earlier  # most of the memory of a large run
    _build_all(run, recipe, [] if unsurveyed else [task for task in pending if task.shard in ready], summary)
    if not summary.failed:
        outdated = OutdatedCaptions()
        chosen = bool(captioners) and list(recipe.captioners) != list(recipe_of(run, manifest).captioners)
        records = _count_outdated(outdated, _read_records(run, tasks))
        summary.published = publish(run, manifest, recipe, records, chosen=chosen)
        for line in outdated.messages(run, "are left out", f", see `dropped_texts` in {run.dataset}"):
            logger.info(line)
    return summary


def recipe_of(run: Run, manifest: Manifest, captioners: Sequence[str] = ()) -> Recipe:
    """The recipe of the run's dataset.

    Args:
        run: The run.
        manifest: Its manifest.
        captioners: The captioners whose texts the dataset has; one that makes several texts for each image stands for
            all of them. Default: those of the manifest's `shard.captioners`, otherwise those that the run has captions
            by and those of the manifest that have started.

    Raises:
        DatasetError: The run has no captions, or none by one of `captioners`.
    """
    names = select_texts(run, manifest, captioners)
    settings = {name: captioner_settings(run, name) for name in names}
    columns = {name: json_columns(settings[name], manifest.structured_outputs.get(name)) for name in names}
    return Recipe(
        {name: str(recorded["id"]) for name, recorded in settings.items()},
        Filters.of(manifest),
        {name: dict(types) for name, types in columns.items() if types},
    )


def select_texts(run: Run, manifest: Manifest, captioners: Sequence[str] = ()) -> list[str]:
    """The texts of an image that a dataset or an export has: names of captioners. The arguments of `recipe_of`.

    Raises DatasetError if the run has no captions by one of `captioners`.
    """
    existing = ledger.captioners(run)
    captioners = [
        text
        for name in captioners or manifest.shard.captioners
        for text in ((name,) if name in existing else manifest.captioner_texts.get(name, (name,)))
    ]
    if unknown := sorted(set(captioners).difference(existing)):
        others = f", or name captioners of the run: {', '.join(existing)}" if existing else ""
        command = "import" if set(unknown) <= set(manifest.imported_names) else "recaption"
        raise DatasetError(
            f"{run.url}: no captions by {', '.join(unknown)} yet. Run `lotlip-data {command} {run.url}`{others}."
        )
    return list(dict.fromkeys(captioners)) or [
        name
        for name in existing
        if name in (*manifest.captioner_names, *manifest.imported_names)
        or ledger.captioned_shards(run, name)  # a failed start leaves a folder
    ]


def json_columns(recorded: Mapping[str, Any], wanted: StructuredOutput | None) -> dict[str, ColumnType]:
    """The keys of a captioner's texts that are columns of the dataset, and their types.

    Args:
        recorded: The settings that made the texts.
        wanted: The manifest's setting now. Its columns count if its form is still that of the texts: they can change
            without new texts.
    """
    if not recorded.get("structured"):
        return {}
    made = StructuredOutput.parse(recorded["structured"])
    return (wanted if wanted is not None and wanted.decisive == made.decisive else made).column_types


def captioner_settings(run: Run, name: str) -> dict[str, Any]:
    """The settings that made a captioner's captions. Raises DatasetError if they are missing."""
    try:
        return ledger.captioner_settings(run, name)
    except FileNotFoundError:
        raise DatasetError(
            f"{run.captioner_settings(name)}: is missing, so it is not known what made the captions beside it. Restore "
            f"it from a copy, or remove them: `lotlip-data captioners remove {run.url} {name}`."
        ) from None


@dataclass(frozen=True, slots=True)
class BuildTask:
    """One shard to build."""

    shard: int
    fingerprint: str
    exclusions: str | None = None
    """The file in `clean/left_out` with the images to leave out because of other images; None if there are none."""


class Identified(Protocol):
    """What is made of the texts of some captioners: the recipe of a dataset, or an export."""

    @property
    def id(self) -> str:
        """Identifies all settings that decide the result."""

    @property
    def captioners(self) -> Mapping[str, str]:
        """Ids of the captioners by name."""


def plan_builds(
    run: Run, recipe: Identified, shards: Iterable[int], exclusions: Mapping[int, str] | None = None
) -> list[BuildTask]:
    """The shards with the fingerprints of recipe, images, captions and exclusions. One listing per folder.

    Args:
        run: The run.
        recipe: The recipe of the dataset, or the export.
        shards: Numbers of the input shards.
        exclusions: The file of excluded images by shard, as `find_exclusions` returns it.
    """
    shards = list(shards)

    def stamps(folder: str, ending: str) -> list[str | None]:
        stamp_by_name = storage.list_stamps(folder, ending)
        return [stamp_by_name.get(f"{shard_name(shard)}{ending}") for shard in shards]

    images = stamps(run.images, "_stats.json")
    captions = [stamps(run.captioner(name), ".parquet") for name in recipe.captioners]
    tasks = []
    for shard, image, *texts in zip(shards, images, *captions, strict=True):
        excluded = (exclusions or {}).get(shard)
        tasks.append(BuildTask(shard, digest(recipe.id, image, texts, excluded), excluded))
    return tasks


def ready_shards(
    run: Run, manifest: Manifest, fetched: Iterable[int], captioners: Sequence[str], command: str
) -> tuple[set[int], list[str]]:
    """The shards that can be built, and what is missing of the others.

    Args:
        run: The run.
        manifest: The manifest of the run.
        fetched: The downloaded shards.
        captioners: The captioners whose texts are needed.
        command: The command line that takes the option `--captioners`, without it.
    """
    fetched = set(fetched)
    stems = (name.partition(".")[0] for name in storage.list_names(run.lists))
    planned = {int(stem) for stem in stems if stem.isdigit()}
    ready, missing = set(fetched), []
    if absent := planned - fetched:
        missing.append(f"missing: images of {_format_shards(absent)}: run `lotlip-data download` again")
    with_images = set(ledger.shards_with_images(run))
    absent_by_name = {name: with_images - set(captioned_shards(run, name)) for name in captioners}
    complete = [name for name in captioners if not absent_by_name[name]]
    for name, absent in absent_by_name.items():
        if absent:
            remedy = _remedy(run, manifest, name, complete, command)
            missing.append(f"missing: captions by {name} of {_format_shards(absent)}: {remedy}")
            ready -= absent
    return ready, missing


def _remedy(run: Run, manifest: Manifest, name: str, complete: Sequence[str], command: str) -> str:
    """How to get the captions that `name` lacks, or do without: captions by the captioners `complete` exist."""
    recaption = caption_command(run, name)
    if name in manifest.captioner_names or is_imported(run, name):
        bring = f"run {recaption}"
    else:
        bring = f"name it under `captioners` in {run.manifest} again and run {recaption}"
    without = f"`{command} --captioners {','.join(complete)}`"
    return f"{bring}; or leave it out with {without}" if complete else bring


def _format_shards(shards: set[int]) -> str:
    names = [shard_name(shard) for shard in sorted(shards)[:LISTED]]
    return f"{wording.count(len(shards), 'shard')} ({', '.join(names)}{', …' if len(shards) > LISTED else ''})"


def _read_records(run: Run, tasks: Sequence[BuildTask]) -> Iterator[ShardRecord]:
    return map_ordered(lambda task: dataset_index.read_record(run, task.shard, task.fingerprint), tasks)


def _count_outdated(outdated: OutdatedCaptions, records: Iterable[ShardRecord]) -> Iterator[ShardRecord]:
    """The records, as they come. Counts the outdated captions that they leave out."""
    for record in records:
        for what, counts in record.dropped_texts.items():
            outdated.add(what, record.shard, counts)
        yield record


def _build_all(run: Run, recipe: Recipe, tasks: list[BuildTask], summary: ShardSummary) -> None:
    """Build the shards on Ray and add the results to `summary`."""
    if tasks:
        storage.check_writable(run.shards)
    with progress_bar("shard", len(tasks), "shard") as bar:
        for task, result in run_ray_tasks(partial(build_shard, run, recipe), tasks):
            _add_result(summary, task, result, len(tasks))
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
            joined = join(images.metas.values(), captions, recipe.rules, _read_drops(run, task, images.metas))
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
