"""Imports existing captions: joins a table to a run's images by URL and commits the texts as a captioner's.

    rows of the table → uid ─┐
                             ├→ join by uid, one bucket at a time → buckets by shard → captions/NAME/
    rows of images/   → uid ─┘

The join is out of core: rows are partitioned into bucket files on the local disk, and one bucket at a time is in
memory. Rows with the same URL are merged, so the captions of each captioner can stand in files of their own. Each
committed shard has one row per image, with its text or the reason why it has none. Rows of the table without a
downloaded image are counted by reason and listed in quarantine/import/.
"""

import logging
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.captioners.base import Caption, CaptionerConfig
from lotlip_data.captioners.quality_flags import find_flags
from lotlip_data.manifests import artifacts, storage, wording
from lotlip_data.manifests.formats.schema import SUCCESS
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import SHOWN_BY_BAR, SUMMARY_LINE, progress_bar
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.storage_retry import StorageError
from lotlip_data.pipeline.core import external_buckets, ledger
from lotlip_data.pipeline.core.external_buckets import ExternalBuckets, bucket_count
from lotlip_data.pipeline.core.ledger import caption_progress, fetched_shards
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.downloading.reader import fetched_rows
from lotlip_data.pipeline.recaptioning.claims import check_claims
from lotlip_data.pipeline.recaptioning.importing.caption_table import (
    CaptionImportError,
    CaptionTable,
    open_source_captions,
    order_of,
)
from lotlip_data.pipeline.recaptioning.importing.claims import check_claim, claim, is_replaced, note_unchanged
from lotlip_data.pipeline.recaptioning.importing.merge import merge_rows
from lotlip_data.pipeline.recaptioning.results import (
    Row,
    encode_rows,
    finish_commit,
    finish_pending_commits,
)
from lotlip_data.pipeline.url_lists.files import uncompressed_bytes
from lotlip_data.pipeline.url_lists.rows import BadRow, ListError

logger = logging.getLogger(__name__)

NO_IMAGE = "no fetched shard has this URL"
NOT_FETCHED = "its image could not be fetched"
REPEATED = "an earlier row has this URL"
NOT_IN_TABLE = "not in the imported table"
EMPTY = "empty in the imported table"

_IMAGE_SCHEMA = pa.schema(
    [("order", pa.uint64()), ("uid", pa.string()), ("shard", pa.int32()), ("fetched", pa.bool_())]
)
_REPORT_SCHEMA = pa.schema([("file", pa.string()), ("row", pa.int64()), ("url", pa.string()), ("reason", pa.string())])


@dataclass
class ImportSummary:
    """What one call did. `rows` is the sum of `matched` and all counts of `unmatched`."""

    rows: int = 0
    """Rows of the table."""
    matched: int = 0
    """Rows with a downloaded image, including images of shards that had these captions."""
    unmatched: Counter[str] = field(default_factory=Counter)
    """Other rows, by reason. `report` lists each of them."""
    defects: Counter[str] = field(default_factory=Counter)
    """Captions of the table that are not in UTF-8, or are no text and count as missing, by column and defect."""
    differing: Counter[str] = field(default_factory=Counter)
    """By captioner, captions that differ from the first one of their URL, which counts."""
    captions: Counter[str] = field(default_factory=Counter)
    """By captioner, the captions that this call committed."""
    without: Counter[str] = field(default_factory=Counter)
    """By captioner, the images of committed shards without a caption. quarantine/captions/NAME/ lists them."""
    shards: int = 0
    """Shards for which this call committed captions."""
    skipped: int = 0
    """Shards that had all these captions."""
    report: str | None = None
    """Parquet file with the unmatched rows and their reasons; None if there is none."""

    def to_dict(self) -> dict[str, Any]:
        """The summary, as `--json` prints it."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # `asdict` miscounts a Counter
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}


def import_captions(run: Run, table: CaptionTable, replace: bool = False) -> ImportSummary:
    """Commit the table's captions for every downloaded shard that lacks them.

    A later call reads the table again only if a shard still lacks captions.

    Args:
        run: The run, whose images are downloaded.
        table: The table of captions.
        replace: Replace captions that were imported before, once the table has proved usable.

    Raises:
        CaptionImportError: No image is downloaded, or no row matches an image.
        ListError: The table cannot be read.
        RecaptionError: A captioner's folder holds captions of a model, or of another table.
    """
    fetched = fetched_shards(run)
    if not fetched:
        raise CaptionImportError(f"{run.url}: no images here yet. Run `lotlip-data download` first.")
    pending: dict[str, set[int]] = {}
    for config in table.configs:
        check_claim(run, table, config, replace)
        progress = caption_progress(run, config.name)
        finish_pending_commits(run, config.name, progress.done)
        pending[config.name] = {*progress.left, *(progress.done if replace else ())}
    pending_shards = set().union(*pending.values())
    summary = ImportSummary(skipped=len(fetched) - len(pending_shards))
    if not pending_shards:
        return summary
    for line in table.describe():
        logger.info(line, extra=SUMMARY_LINE)
    storage.check_writable(run.captions)
    with scratch_folder("import") as folder:
        joined = _join(run, table, fetched, pending_shards, folder, summary)
        claim(run, table, replace)
        with progress_bar("import", len(pending_shards), "shard") as bar:
            for shard, texts in _by_shard(joined, pending_shards):
                configs = [config for config in table.configs if shard in pending[config.name]]
                _commit(run, configs, shard, texts, summary)
                rows, total = wording.count(texts.num_rows, "row"), wording.count(len(pending_shards), "shard")
                logger.info(
                    f"shard {shard_name(shard)}: {rows} of the table; {summary.shards:,} of {total} done",
                    extra=SHOWN_BY_BAR,
                )
                bar.update()
    return summary


def import_source_captions(manifest: Manifest, run: Run) -> ImportSummary:
    """Commit the captions that the manifest's sources carry, for every downloaded shard that lacks them.

    If a list or the choice of its columns has changed since, its captions replace the earlier ones, once the lists have
    proved usable. Lists that are out of reach are no error while no shard lacks captions.

    Args:
        manifest: The run's manifest.
        run: The run, whose images are downloaded.

    Raises:
        As `import_captions`.
    """
    try:
        table = open_source_captions(manifest)
    except (ListError, StorageError) as error:
        if not fetched_shards(run) or any(caption_progress(run, name).left for name in manifest.imported_names):
            raise
        logger.warning(f"the captions stay as they are, because their list cannot be read: {error}")
        return ImportSummary(skipped=len(fetched_shards(run)))
    is_new = is_replaced(run, table)
    if not is_new:
        note_unchanged(run, table)
    return import_captions(run, table, replace=is_new)


def _join(
    run: Run,
    table: CaptionTable,
    fetched: Sequence[int],
    pending_shards: set[int],
    folder: pathlib.Path,
    summary: ImportSummary,
) -> ExternalBuckets:
    """Join the table's rows to the images by uid.

    Args:
        run: The run.
        table: The table of captions.
        fetched: All downloaded shards.
        pending_shards: The shards whose rows are kept.
        folder: Scratch folder on the local disk.
        summary: Receives the counts of rows.

    Returns:
        The rows that have a downloaded image in a pending shard, bucketed by shard.

    Raises:
        CaptionImportError: No row has a downloaded image.
    """
    with _JoinReport(run, table, folder / "report.parquet", summary) as report:
        logger.info(f"reading {table.label}")
        count = bucket_count(sum(map(uncompressed_bytes, table.sources)))
        rows = _make_buckets(folder / "rows", count, table.schema)
        for batch in table.batches(report.reject, summary.defects):
            summary.rows += batch.num_rows
            rows.add(batch)
        rows.flush()
        images = _make_buckets(folder / "images", count, _IMAGE_SCHEMA)
        for shard in fetched:
            images.add(_shard_images(run, shard))
        images.flush()
        joined = _join_buckets(rows, images, report, pending_shards, folder / "joined")
    if not summary.rows:
        raise CaptionImportError(f"{table.label}: has no rows")
    if not summary.matched:
        raise CaptionImportError(
            f"{table.label}: none of its {summary.rows} rows has the URL of an image of {run.url} "
            f"({', '.join(f'{count} × {reason}' for reason, count in summary.unmatched.most_common())}). "
            f"Does the column {table.files[0].columns.url!r} hold the URLs that were downloaded?"
        )
    return joined


def _join_buckets(
    rows: ExternalBuckets,
    images: ExternalBuckets,
    report: "_JoinReport",
    pending_shards: set[int],
    folder: pathlib.Path,
) -> ExternalBuckets:
    """Join rows and images one bucket at a time, and bucket the rows of pending shards by shard."""
    schema = rows.schema.append(pa.field("shard", pa.int32()))
    shard_count = max(pending_shards) + 1
    joined = _make_buckets(folder, min(rows.count, shard_count), schema)
    pending = pa.array(sorted(pending_shards), pa.int32())
    for number in range(rows.count):
        matched = report.match(rows.bucket(number), images.bucket(number))
        matched = matched.filter(pc.is_in(matched["shard"], pending))
        order = matched["shard"].to_numpy().astype(np.uint64) * np.uint64((2**64 - 1) // shard_count)
        joined.add(matched.set_column(0, "order", pa.array(order)).select(schema.names))
    joined.flush()
    return joined


def _make_buckets(folder: pathlib.Path, count: int, schema: pa.Schema) -> ExternalBuckets:
    folder.mkdir()
    return ExternalBuckets(folder, count, schema, external_buckets.BUFFER_BYTES)


def _shard_images(run: Run, shard: int) -> pa.Table:
    """The images of one shard as a table of `_IMAGE_SCHEMA`, including those that could not be downloaded."""
    rows = fetched_rows(run, shard, ledger.read_image_stats(run, shard), ["uid", "status"])
    uids = rows["uid"].to_pylist()
    columns = [
        pa.array([order_of(uid) for uid in uids], pa.uint64()),
        rows["uid"],
        pa.array([shard] * len(uids), pa.int32()),
        pc.equal(rows["status"], SUCCESS),
    ]
    return pa.table(columns, schema=_IMAGE_SCHEMA)


class _JoinReport:
    """Separates the rows that have a downloaded image from the others, and writes the others with their reasons.

    The report is written to a local file, and moved to the run's quarantine once all rows are read.

    Args:
        run: The run.
        table: The table of captions.
        local_path: Local file for the report.
        summary: Receives the counts of matched and unmatched rows.
    """

    def __init__(self, run: Run, table: CaptionTable, local_path: pathlib.Path, summary: ImportSummary) -> None:
        self._target = run.quarantine("import", f"{'-'.join(table.names)}.parquet")
        self._files, self._names = [file.path for file in table.files], table.names
        self._local_path, self._summary = local_path, summary
        self._rejected: list[dict[str, Any]] = []

    def __enter__(self) -> "_JoinReport":
        self._writer = artifacts.parquet_writer(self._local_path, _REPORT_SCHEMA)
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()
        if error[0] is not None:
            return
        storage.remove(self._target)
        if self._summary.unmatched:
            storage.create_from_file(self._target, str(self._local_path))
            self._summary.report = self._target

    def reject(self, bad: BadRow) -> None:
        """Count and report a row that cannot be used."""
        self._summary.rows += 1
        self._summary.unmatched[bad.reason] += 1
        self._rejected.append({"file": bad.file, "row": bad.row, "url": bad.content, "reason": bad.reason})
        if len(self._rejected) == 10_000:
            self._flush()

    def match(self, rows: pa.Table, images: pa.Table) -> pa.Table:
        """Match one bucket's rows to its images by uid, and report the others.

        Args:
            rows: Rows of the table. Those with the same URL are merged.
            images: Rows of `_IMAGE_SCHEMA`.

        Returns:
            One row per URL with a downloaded image, with the image's `shard` as a further column.
        """
        rows = rows.sort_by([("uid", "ascending"), ("ordinal", "ascending")])
        merged = merge_rows(rows, self._names)
        self._summary.differing += merged.differing
        images = images.sort_by([("fetched", "descending")])  # a retried image can also have a failed row
        position = pc.index_in(merged.rows["uid"], value_set=images["uid"].combine_chunks())
        image = images.take(position.combine_chunks())
        is_known = pc.is_valid(position).to_numpy()
        is_fetched = pc.fill_null(image["fetched"], False).to_numpy()
        reasons = (
            (~merged.is_used, REPEATED),
            (merged.is_used & ~is_known[merged.group], NO_IMAGE),
            (merged.is_used & (is_known & ~is_fetched)[merged.group], NOT_FETCHED),
        )
        for mask, reason in reasons:
            self._write(rows.filter(pa.array(mask)), reason)
        self._summary.matched += int(np.count_nonzero(merged.is_used & is_fetched[merged.group]))
        return merged.rows.append_column("shard", image["shard"]).filter(pa.array(is_fetched))

    def _write(self, rows: pa.Table, reason: str) -> None:
        if rows.num_rows:
            self._summary.unmatched[reason] += rows.num_rows
            files = pa.array(self._files).take(rows["file"].combine_chunks())
            columns = [files, rows["row"], rows["url"], pa.array([reason] * rows.num_rows)]
            self._writer.write_table(pa.table(columns, schema=_REPORT_SCHEMA))

    def _flush(self) -> None:
        if self._rejected:
            self._writer.write_table(pa.Table.from_pylist(self._rejected, schema=_REPORT_SCHEMA))
            self._rejected = []


def _by_shard(joined: ExternalBuckets, pending_shards: set[int]) -> Iterator[tuple[int, pa.Table]]:
    """Each pending shard with its rows of the table; shards without rows come last."""
    without_rows = set(pending_shards)
    for bucket in joined:
        for shard in sorted(set(bucket["shard"].to_pylist())):
            without_rows.discard(shard)
            yield shard, bucket.filter(pc.equal(bucket["shard"], shard))
    for shard in sorted(without_rows):
        yield shard, joined.schema.empty_table()


def _commit(run: Run, configs: Sequence[CaptionerConfig], shard: int, texts: pa.Table, summary: ImportSummary) -> None:
    """Commit the captions of one shard.

    Args:
        run: The run.
        configs: The captioners whose captions the shard lacks.
        shard: The shard.
        texts: Its rows of the table, at most one per image.
        summary: Receives the counts.
    """
    downloads = fetched_rows(run, shard, ledger.read_image_stats(run, shard), ["key", "uid", "sha256", "status"])
    images = downloads.filter(pc.equal(downloads["status"], SUCCESS)).sort_by("key").to_pylist()
    uids = texts["uid"].to_pylist()
    for config in configs:
        text_of_uid = dict(zip(uids, texts[f"text {config.name}"].to_pylist(), strict=True))
        rows = [_caption_row(config, image, text_of_uid.get(image["uid"])) for image in images]
        check_claims(run, config, "")
        storage.create(run.caption_shard(config.name, shard), encode_rows(rows, captioner=config.id))
        finish_commit(run, config.name, shard)
        captioned = sum(row["text"] is not None for row in rows)
        summary.captions[config.name] += captioned
        summary.without[config.name] += len(rows) - captioned
    summary.shards += 1


def _caption_row(config: CaptionerConfig, image: Mapping[str, Any], text: str | None) -> Row:
    """The row of one image.

    Args:
        config: The captioner.
        image: The image's key, uid and sha256.
        text: The caption; None if the table does not have the image, and empty if its caption there is blank.
    """
    identity = {name: image[name] for name in ("key", "uid", "sha256")}
    empty: Row = {"text": None, "finish_reason": None, "tokens": None, "flags": [], "engine": config.kind}
    if not text:
        return identity | empty | {"error": NOT_IN_TABLE if text is None else EMPTY}
    flags = find_flags(Caption(text, "stop", 0), config)
    return identity | empty | {"text": text, "finish_reason": "stop", "flags": flags, "error": None}


def format_text(summary: ImportSummary) -> list[str]:
    """The summary of a call that committed captions, as lines of text."""
    rows = wording.count(summary.rows, "row")
    lines = [f"{summary.matched:,} of {rows} {wording.plural(summary.rows, 'has')} a downloaded image"]
    lines += [f"  {count:,} × {reason}" for reason, count in summary.unmatched.most_common()]
    if summary.report is not None:
        lines.append(f"  {summary.report} lists these rows")
    lines += [
        f"  {wording.count(count, 'caption')} of the column {defect}" for defect, count in summary.defects.most_common()
    ]
    lines += [
        f"  {wording.count(count, 'caption')} by {name} left out: another one is the first of the same URL"
        for name, count in summary.differing.most_common()
    ]
    for name, count in summary.captions.items():
        note = f", listed in quarantine/captions/{name}/" if summary.without[name] else ""
        without = wording.count(summary.without[name], "image")
        lines.append(f"{name}: {wording.count(count, 'caption')}, {without} without one{note}")
    return lines
