"""Captions that exist already, joined to a run's images by URL as if our captioners had written them, out of core.

    rows of the table → uid ─┐
                             ├→ buckets of the uid: of an image, or of none → buckets of the shard → captions/NAME/
    rows of images/   → uid ─┘

A shard's captions are committed as those of any captioner: one row an image, with its text or the reason why it has
none. Rows of the table that no image has are counted by reason and written to quarantine/import/.
"""

import logging
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.captioners.base import Caption, CaptionerConfig
from lotlip_data.captioners.quality_flags import find_flags
from lotlip_data.manifests import storage
from lotlip_data.manifests.progress import SHOWN_BY_BAR, progress_bar
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.schema import SUCCESS
from lotlip_data.pipeline.core import external_buckets, ledger
from lotlip_data.pipeline.core.external_buckets import ExternalBuckets, bucket_count
from lotlip_data.pipeline.core.ledger import caption_progress, fetched_shards
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.downloading.reader import fetched_rows
from lotlip_data.pipeline.recaptioning.caption_table import CaptionTable, ImportProblem, order_of
from lotlip_data.pipeline.recaptioning.results import claim_settings, encode_rows, finish_commit, finish_pending_commits
from lotlip_data.pipeline.url_lists.reader import BadRow, uncompressed_bytes

logger = logging.getLogger(__name__)

NO_IMAGE = "no fetched shard has this URL"
NOT_FETCHED = "its image could not be fetched"
REPEATED = "an earlier row has this URL"
NOT_IN_TABLE = "not in the imported table"
EMPTY = "empty in the imported table"

_IMAGE_SCHEMA = pa.schema(
    [("order", pa.uint64()), ("uid", pa.string()), ("shard", pa.int32()), ("fetched", pa.bool_())]
)
_REPORT = pa.schema([("file", pa.string()), ("row", pa.int64()), ("url", pa.string()), ("reason", pa.string())])
_IMAGE_BYTES = 60  # of a row of `_IMAGE_SCHEMA`


@dataclass
class ImportSummary:
    """What one call did. `rows` = matched + Σ unmatched."""

    rows: int = 0
    """Of the table."""
    matched: int = 0
    """Rows with a fetched image, whether or not its shard was left."""
    unmatched: Counter[str] = field(default_factory=Counter)
    """The others, by reason; each of them is in `report`."""
    captions: Counter[str] = field(default_factory=Counter)
    """Captions committed by this call, by captioner."""
    without: Counter[str] = field(default_factory=Counter)
    """Images that this call found no caption for, by captioner; quarantine/captions/NAME/ lists them."""
    shards: int = 0
    """Shards that this call wrote captions of."""
    skipped: int = 0
    """Shards that had them all."""
    report: str | None = None

    def to_dict(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}  # `asdict` miscounts a Counter
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}


def import_captions(run: Run, table: CaptionTable) -> ImportSummary:
    """Commit the table's captions for every fetched shard that lacks them.

    Started again, it reads the table again for the shards that are left, if any. Raises ImportProblem where nothing is
    fetched or no row matches, ListError for a table that cannot be read, RecaptionError where a captioner's folder
    holds other captions.
    """
    fetched = fetched_shards(run)
    if not fetched:
        raise ImportProblem(f"{run.url}: no images here yet. Run `lotlip-data download` first.")
    left: dict[str, set[int]] = {}
    for config in table.configs:
        if storage.exists(run.captioner_settings(config.name)):
            claim_settings(run, config)
        work = caption_progress(run, config.name)
        finish_pending_commits(run, config.name, work.done)
        left[config.name] = set(work.left)
    wanted = set().union(*left.values())
    summary = ImportSummary(skipped=len(fetched) - len(wanted))
    if not wanted:
        return summary
    with scratch_folder("import") as folder:
        joined = _join(run, table, fetched, wanted, folder, summary)
        for config in table.configs:
            claim_settings(run, config)
        with progress_bar("import", len(wanted), "shard") as bar:
            for shard, texts in _by_shard(joined, wanted):
                configs = [config for config in table.configs if shard in left[config.name]]
                _commit(run, configs, shard, texts, summary)
                text = f"{texts.num_rows} rows of the table ({summary.shards} of {len(wanted)})"
                logger.info(f"shard {shard_name(shard)}: {text}", extra=SHOWN_BY_BAR)
                bar.update()
    return summary


def _join(
    run: Run,
    table: CaptionTable,
    fetched: list[int],
    wanted: set[int],
    folder: pathlib.Path,
    summary: ImportSummary,
) -> ExternalBuckets:
    """The table's rows that have an image in a wanted shard, in buckets of the shard. The others go to the report."""
    for name in ("rows", "images", "joined"):
        (folder / name).mkdir()
    with _Report(run, table, folder / "report.parquet", summary) as report:
        logger.info(f"reading {table.source.files[0]}")
        size = uncompressed_bytes(table.source)
        rows = ExternalBuckets(folder / "rows", bucket_count(size), table.schema, external_buckets.BUFFER_BYTES)
        for batch in table.batches(report.reject):
            summary.rows += batch.num_rows
            rows.add(batch)
        rows.flush()
        images = ExternalBuckets(folder / "images", rows.count, _IMAGE_SCHEMA, external_buckets.BUFFER_BYTES)
        for shard in fetched:
            images.add(_uids(run, shard))
        images.flush()
        schema = table.schema.append(pa.field("shard", pa.int32()))
        count = min(bucket_count(size), max(wanted) + 1)
        joined = ExternalBuckets(folder / "joined", count, schema, external_buckets.BUFFER_BYTES)
        left = pa.array(sorted(wanted), pa.int32())
        for number in range(rows.count):
            matched = report.matched(rows.bucket(number), images.bucket(number))
            matched = matched.filter(pc.is_in(matched["shard"], left))
            place = matched["shard"].to_numpy().astype(np.uint64) * np.uint64((2**64 - 1) // (max(wanted) + 1))
            joined.add(matched.set_column(0, "order", pa.array(place)).select(schema.names))
        joined.flush()
    if not summary.matched:
        raise ImportProblem(
            f"{table.source.files[0]}: none of its {summary.rows} rows has the URL of an image of {run.url} "
            f"({', '.join(f'{count} × {reason}' for reason, count in summary.unmatched.most_common())}). "
            f"Does the column {table.source.url!r} hold the URLs that were downloaded?"
        )
    return joined


def _uids(run: Run, shard: int) -> pa.Table:
    """The images of one shard, those that could not be fetched included."""
    found = fetched_rows(run, shard, ledger.read_image_stats(run, shard), ["uid", "status"])
    uids = found["uid"].to_pylist()
    columns = [
        pa.array([order_of(uid) for uid in uids], pa.uint64()),
        found["uid"],
        pa.array([shard] * len(uids), pa.int32()),
        pc.equal(found["status"], SUCCESS),
    ]
    return pa.table(columns, schema=_IMAGE_SCHEMA)


class _Report:
    """Writes down the rows that no image has, by reason; in the run's quarantine when all are read."""

    def __init__(self, run: Run, table: CaptionTable, local: pathlib.Path, summary: ImportSummary) -> None:
        name = "-".join(config.name for config in table.configs)
        self._target = run.quarantine("import", f"{name}.parquet")
        self._files, self._local, self._summary = table.files, local, summary
        self._bad: list[dict[str, Any]] = []

    def __enter__(self) -> "_Report":
        self._writer = pq.ParquetWriter(self._local, _REPORT, compression="zstd")
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()
        if error[0] is not None:
            return
        storage.remove(self._target)
        if self._summary.unmatched:
            storage.create_from_file(self._target, str(self._local))
            self._summary.report = self._target

    def reject(self, bad: BadRow) -> None:
        self._summary.rows += 1
        self._summary.unmatched[bad.reason] += 1
        self._bad.append({"file": bad.file, "row": bad.row, "url": bad.content, "reason": bad.reason})
        if len(self._bad) == 10_000:
            self._flush()

    def matched(self, rows: pa.Table, images: pa.Table) -> pa.Table:
        """The rows of one bucket that have an image, with its `shard`; the first row of each URL."""
        rows = rows.sort_by([("uid", "ascending"), ("ordinal", "ascending")])
        uids = rows["uid"].to_numpy()
        first = pa.array(np.append(True, uids[1:] != uids[:-1])[: len(uids)])
        self._write(rows.filter(pc.invert(first)), REPEATED)
        rows = rows.filter(first)
        images = images.sort_by([("fetched", "descending")])  # an image that was fetched again has failed elsewhere
        place = pc.index_in(rows["uid"], value_set=images["uid"].combine_chunks())
        self._write(rows.filter(pc.is_null(place)), NO_IMAGE)
        rows, place = rows.filter(pc.is_valid(place)), place.drop_null()
        image = images.take(place)
        self._write(rows.filter(pc.invert(image["fetched"])), NOT_FETCHED)
        rows = rows.append_column("shard", image["shard"]).filter(image["fetched"])
        self._summary.matched += rows.num_rows
        return rows

    def _write(self, rows: pa.Table, reason: str) -> None:
        if rows.num_rows:
            self._summary.unmatched[reason] += rows.num_rows
            files = pa.array(self._files).take(rows["file"].combine_chunks())
            columns = [files, rows["row"], rows["url"], pa.array([reason] * rows.num_rows)]
            self._writer.write_table(pa.table(columns, schema=_REPORT))

    def _flush(self) -> None:
        if self._bad:
            self._writer.write_table(pa.Table.from_pylist(self._bad, schema=_REPORT))
            self._bad = []


def _by_shard(joined: ExternalBuckets, wanted: set[int]) -> Iterator[tuple[int, pa.Table]]:
    """Each wanted shard with its rows of the table, those without any last."""
    left = set(wanted)
    for bucket in joined:
        for shard in sorted(set(bucket["shard"].to_pylist())):
            left.discard(shard)
            yield shard, bucket.filter(pc.equal(bucket["shard"], shard))
    for shard in sorted(left):
        yield shard, joined.schema.empty_table()


def _commit(run: Run, configs: list[CaptionerConfig], shard: int, texts: pa.Table, summary: ImportSummary) -> None:
    """One row of `schema.CAPTIONS` for each fetched image of the shard, by each captioner."""
    asked = fetched_rows(run, shard, ledger.read_image_stats(run, shard), ["key", "uid", "sha256", "status"])
    images = asked.filter(pc.equal(asked["status"], SUCCESS)).sort_by("key").to_pylist()
    places = {uid: place for place, uid in enumerate(texts["uid"].to_pylist())}
    for config in configs:
        listed = texts[f"text {config.name}"].to_pylist()
        rows = []
        for image in images:
            place = places.get(image["uid"])
            rows.append(_caption(config, image, None if place is None else listed[place] or ""))
        storage.create(run.caption_shard(config.name, shard), encode_rows(rows, config.id))
        finish_commit(run, config.name, shard)
        found = sum(row["text"] is not None for row in rows)
        summary.captions[config.name] += found
        summary.without[config.name] += len(rows) - found
    summary.shards += 1


def _caption(config: CaptionerConfig, image: Mapping[str, Any], text: str | None) -> dict[str, Any]:
    """`text` is None for an image that the table does not have, blank for one without a caption there."""
    identity = {name: image[name] for name in ("key", "uid", "sha256")}
    nothing: dict[str, Any] = {"text": None, "finish_reason": None, "tokens": None, "flags": [], "engine": config.kind}
    if not text:
        return identity | nothing | {"error": NOT_IN_TABLE if text is None else EMPTY}
    flags = find_flags(Caption(text, "stop", 0), config)
    return identity | nothing | {"text": text, "finish_reason": "stop", "flags": flags, "error": None}


def format_text(summary: ImportSummary) -> list[str]:
    """The summary for people."""
    if not summary.shards:
        return [f"import: nothing to do, all {summary.skipped} shards have these captions"]
    lines = [f"{summary.matched:,} of {summary.rows:,} rows have an image"]
    lines += [f"  {count:,} × {reason}" for reason, count in summary.unmatched.most_common()]
    if summary.report is not None:
        lines.append(f"  each of these is in {summary.report}")
    for name, count in summary.captions.items():
        where = f", listed in quarantine/captions/{name}/" if summary.without[name] else ""
        lines.append(f"{name}: {count:,} captions, {summary.without[name]:,} images without one{where}")
    return lines
