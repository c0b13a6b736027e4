"""Exports the captions of a run, one file per image shard, on Ray; each shard's record is created last.

A file is identified by a fingerprint of everything that it is made of, as a shard of the dataset is. If the fingerprint
has a record, and the file is there, the shard is not exported again.
"""

import logging
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.artifacts import digest
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import SUCCESS
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import SHOWN_BY_BAR, progress_bar
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import fetched_shards
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.dataset.builds import BuildTask, plan_builds
from lotlip_data.pipeline.dataset.inputs import ready_shards
from lotlip_data.pipeline.dataset.outdated import OutdatedCaptions
from lotlip_data.pipeline.dataset.recipe import captioner_settings, select_texts
from lotlip_data.pipeline.dataset.stage import read_captions
from lotlip_data.pipeline.downloading.reader import fetched_images, fetched_rows
from lotlip_data.pipeline.exporting.folder import ExportFolder, ExportRecord
from lotlip_data.pipeline.exporting.formats import FORMATS, Format, format_of
from lotlip_data.pipeline.exporting.rows import Counts, Row, is_complete, join
from lotlip_data.pipeline.exporting.writers import ROW_GROUP

logger = logging.getLogger(__name__)

REVISION = 1
"""Raised when the code writes other rows for the same captions; files of earlier revisions are then written again."""


@dataclass(frozen=True)
class Export:
    """What is exported, and where to."""

    run: Run
    folder: ExportFolder
    captioners: dict[str, str]
    """Ids of the captioners by name, in the order of their columns."""
    columns: dict[str, str]
    """The column of each captioner's texts."""

    @property
    def format(self) -> Format:
        return FORMATS[self.folder.format]

    @property
    def id(self) -> str:
        """Identifies all settings that decide the files."""
        return digest(REVISION, self.folder.format, list(self.captioners.items()), list(self.columns.items()))

    @property
    def command(self) -> str:
        """The command line that exports it, without its option `--captioners`."""
        options = [self.run.url, "--format", self.folder.format, "--out", self.folder.url]
        return f"lotlip-data export {shlex.join(options)}"


@dataclass(frozen=True, slots=True)
class ExportTask:
    """One shard to export."""

    build: BuildTask
    stale: tuple[str, ...]
    """Fingerprints of the shard's records, which its new file makes invalid."""


@dataclass
class ExportSummary:
    """The result of one call of `export`."""

    skipped: int = 0
    """Shards that were exported before."""
    exported: int = 0
    """Shards that were exported by this call."""
    rows: int = 0
    """Rows in the files that were written by this call."""
    texts: Counter[str] = field(default_factory=Counter)
    """Texts in these files, by captioner."""
    without: Counter[str] = field(default_factory=Counter)
    """Rows of these files without a text, by captioner."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Texts that exist and are left out of these files, by reason."""
    removed: int = 0
    """Files of shards that the run no longer has, which were removed."""
    failed: list[str] = field(default_factory=list)
    """What could not be exported, each with its reason, or what is missing, each with the command that brings it."""
    index: str | None = None
    """The index of all files; None while something failed or is missing."""
    changed: bool = False
    """Whether the index was written."""

    @property
    def nothing_to_do(self) -> bool:
        return not (self.exported or self.removed or self.failed or self.changed)

    def to_dict(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    def lines(self) -> list[str]:
        """The result for people."""
        lines = []
        if self.exported:
            files, rows = wording.count(self.exported, "shard"), wording.count(self.rows, "row")
            lines = [f"export: {files} with {rows}"]
            lines += [
                f"  {name}: {wording.count(texts, 'text')}, {wording.count(self.without[name], 'image')} without one"
                for name, texts in self.texts.items()
            ]
            lines += [f"  {wording.count(n, 'text')} left out ({reason})" for reason, n in self.left_out.items()]
        if self.removed:
            removed = wording.count(self.removed, "file")
            lines.append(f"export: removed {removed} of shards that the run no longer has")
        return lines

    def add(self, record: ExportRecord) -> None:
        """Count an exported shard."""
        self.exported += 1
        self.rows += record.rows
        self.texts.update(record.texts)
        self.without.update({name: record.rows - texts for name, texts in record.texts.items()})
        for counts in record.left_out.values():
            self.left_out.update(counts)


def export(
    manifest: Manifest, run: Run, out: str, file_format: str = "parquet", captioners: Sequence[str] = ()
) -> ExportSummary:
    """Export every shard that has images and captions by all captioners, on Ray.

    Args:
        manifest: The manifest of the run.
        run: The run.
        out: The folder to write to, as a path or URL.
        file_format: One of `FORMATS`.
        captioners: The captioners whose texts are exported, as NAME or NAME=COLUMN. Default: those of the dataset.

    Raises:
        UserError: The run has no images or no such captions, or the folder holds something else.
    """
    fetched = fetched_shards(run)
    if not fetched:
        raise UserError(f"{run.url}: no images here yet. Run `lotlip-data download` first.")
    content = describe(manifest, run, out, file_format, captioners)
    content.folder.claim(run)
    storage.remove_stale_scratch(content.folder.url)
    ready, missing = ready_shards(run, manifest, fetched, list(content.captioners), content.command)
    for line in missing:
        logger.info(line)
    tasks = plan_builds(run, content, fetched)
    pending, gone = plan_exports(content, tasks)
    summary = ExportSummary(skipped=len(tasks) - len(pending), failed=missing)
    _export_all(content, [task for task in pending if task.build.shard in ready], summary)
    if not summary.failed:
        for shard, fingerprints in gone.items():
            content.folder.remove(shard, fingerprints)
        summary.removed = len(gone)
        _finish(content, tasks, summary)
    return summary


def describe(manifest: Manifest, run: Run, out: str, file_format: str, captioners: Sequence[str] = ()) -> Export:
    """What an export consists of. The arguments and errors of `export`."""
    chosen = format_of(file_format)
    named = _parse_captioners(captioners)
    names = select_texts(run, manifest, list(named))
    if not names:
        raise UserError(f"{run.url}: no captions here yet. Run `lotlip-data recaption {run.url}` first.")
    named = {name: column for name, column in named.items() if column}
    if several := sorted(named.keys() - set(names)):
        raise UserError(f"--captioners {several[0]}={named[several[0]]}: it makes several texts; name one of them")
    settings = {name: captioner_settings(run, name) for name in names}
    default = chosen.default_columns([name for name in names if name not in named], settings)
    columns = {name: named.get(name) or default[name] for name in names}
    _check_distinct(columns)
    chosen.schema(columns)  # raises if a column cannot be one
    rivals = tuple(name for name, other in FORMATS.items() if other.ending == chosen.ending and name != file_format)
    folder = ExportFolder(storage.normalise(out), file_format, chosen.ending, rivals)
    return Export(run, folder, {name: str(settings[name]["id"]) for name in names}, columns)


def _parse_captioners(captioners: Iterable[str]) -> dict[str, str]:
    """The column of each captioner in NAME or NAME=COLUMN; it is empty where only NAME is given."""
    columns: dict[str, str] = {}
    for text in captioners:
        name, equals, column = text.partition("=")
        if not name or (equals and not column):
            raise UserError(f"--captioners {text}: give a captioner's NAME, or NAME=COLUMN")
        if columns.setdefault(name, column) != column:
            raise UserError(f"--captioners {text}: {name!r} has the column {(columns[name] or name)!r} already")
    return columns


def _check_distinct(columns: Mapping[str, str]) -> None:
    """Raise UserError if two captioners have one column."""
    by_column: dict[str, str] = {}
    for name, column in columns.items():
        if other := by_column.get(column):
            raise UserError(
                f"captioners {other!r} and {name!r}: both have the column {column!r}. Name one of them alone, or "
                "another column for one: --captioners NAME=COLUMN"
            )
        by_column[column] = name


def plan_exports(content: Export, tasks: Sequence[BuildTask]) -> tuple[list[ExportTask], dict[int, list[str]]]:
    """The shards to export, and those that the run no longer has, with the fingerprints of their records.

    Args:
        content: What is exported.
        tasks: All shards of the run, with their fingerprints.
    """
    recorded, existing = content.folder.recorded(), content.folder.existing()
    with_images = set(ledger.shards_with_images(content.run))
    pending = []
    for task in tasks:
        fingerprints = recorded.pop(task.shard, [])
        if fingerprints != [task.fingerprint] or (task.shard in with_images) != (task.shard in existing):
            pending.append(ExportTask(task, tuple(fingerprints)))
    gone = (recorded.keys() | existing).difference(task.shard for task in tasks)
    return pending, {shard: recorded.get(shard, []) for shard in gone}


def _export_all(content: Export, tasks: list[ExportTask], summary: ExportSummary) -> None:
    """Export the shards on Ray and add the results to `summary`."""
    if tasks:
        storage.check_writable(content.folder.url)
    with progress_bar("export", len(tasks), "shard") as bar:
        for task, result in run_ray_tasks(partial(export_shard, content), tasks, name="export"):
            name = shard_name(task.build.shard)
            if isinstance(result, ExportRecord):
                summary.add(result)
                rows, total = wording.count(result.rows, "row"), wording.count(len(tasks), "shard")
                logger.info(f"shard {name}: {rows}; {summary.exported:,} of {total} done", extra=SHOWN_BY_BAR)
            else:
                reason = one_line(result)
                summary.failed.append(f"shard {name}: {reason}")
                logger.warning(f"shard {name} could not be exported: {reason}")
            failed = wording.count(len(summary.failed), "shard")
            bar.note(f"{summary.rows:,} rows", f"{failed} failed" if summary.failed else "")
            bar.update()


def export_shard(content: Export, task: ExportTask) -> ExportRecord:
    """Write and commit the file of one shard. Needs no Ray.

    Raises:
        JoinError: Images and captions do not belong together.
        UserError: An input cannot be read.
    """
    number, counts = task.build.shard, Counts(content.columns)
    with scratch_folder("export") as scratch:
        local = None
        if ledger.read_image_stats(content.run, number)["successes"]:
            local = scratch / content.folder.name(number)
            _write(content, number, local, counts)
        content.folder.forget(number, task.stale)
        left_out = {what: dict(by_reason) for what, by_reason in counts.left_out.items()}
        record = ExportRecord(number, task.build.fingerprint, counts.rows, counts.texts, left_out, None)
        return content.folder.commit(record, local)


def _write(content: Export, number: int, local: Path, counts: Counts) -> None:
    """Write the rows of one shard, and its images if the format has them, to a local file."""
    chosen = content.format
    rows = _rows_with_images(content, number) if chosen.has_images else _rows(content, number)
    with chosen.writer(local, chosen.schema(content.columns)) as writer:
        for full_row, image in rows:
            row = chosen.fit(full_row)
            counts.add(row)
            writer.write(chosen.row(row), image, is_complete(row, content.columns))


def _rows(content: Export, number: int) -> Iterator[tuple[Row, None]]:
    """The rows of one shard: complete ones first, because readers infer types from the first rows; else by key."""
    marker = ledger.read_image_stats(content.run, number)
    table = fetched_rows(content.run, number, marker, None)
    table = table.filter(pc.equal(table["status"], SUCCESS)).sort_by("key")
    images = (image for batch in table.to_batches(ROW_GROUP) for image in batch.to_pylist())
    incomplete = []
    for row in join(images, _captions(content, number), content.columns):
        if is_complete(row, content.columns):
            yield row, None
        else:
            incomplete.append(row)
    yield from ((row, None) for row in incomplete)


def _rows_with_images(content: Export, number: int) -> Iterator[tuple[Row, bytes]]:
    """The rows of one shard with their images, in the order of its tar. One image is in memory at a time."""
    current = b""

    def metas() -> Iterator[Mapping[str, Any]]:
        nonlocal current
        for fetched in fetched_images(content.run, number):
            current = fetched.image
            yield {**fetched.meta, "key": fetched.key}

    for row in join(metas(), _captions(content, number), content.columns):
        yield row, current


def _captions(content: Export, number: int) -> dict[str, Any]:
    return {name: read_captions(content.run, name, number) for name in content.captioners}


def _finish(content: Export, tasks: Sequence[BuildTask], summary: ExportSummary) -> None:
    """Write the index of a complete export, and say which captions are outdated."""
    outdated = OutdatedCaptions()
    summary.changed = content.folder.write_index(
        {"format": content.folder.format, "run": content.run.url, "captioners": content.captioners}
        | {"columns": content.columns},
        _count_outdated(outdated, _read_records(content.folder, tasks)),
    )
    summary.index = content.folder.index
    for line in outdated.messages(content.run, "are not exported", command=content.command):
        logger.info(line)


def _read_records(folder: ExportFolder, tasks: Sequence[BuildTask]) -> Iterator[ExportRecord]:
    return map_ordered(lambda task: folder.read(task.shard, task.fingerprint), tasks)


def _count_outdated(outdated: OutdatedCaptions, records: Iterable[ExportRecord]) -> Iterator[ExportRecord]:
    """The records, as they come. Counts the outdated captions that they leave out."""
    for record in records:
        for name, counts in record.left_out.items():
            outdated.add(name, record.shard, counts)
        yield record
