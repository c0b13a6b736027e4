"""Partitions the URL lists of a manifest into shards, once per run, before any download. Works out of core.

    rows of all sources → filtered → uid → buckets in seeded order → each bucket sorted, sources sampled, equal uids
    merged → cut into shards → lists/00000.parquet …, then lists/plan.json

The order is that of a hash of the uid, keyed by the manifest's seed. It mixes the sources and spreads the hosts over
the shards. The manifest's `sample` is the first rows of it. Neither depends on the number of buckets. A source's own
`sample` has exactly that number of its images, drawn by another hash with the source's seed.

A list shard has one row per image, with the columns `schema.LISTS`: its URL as the first source spells it, the texts of
all sources in the manifest's order ("" if a source has none), and the first expected hash of each kind.
"""

import hashlib
import logging
import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests import artifacts, storage, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import LISTS
from lotlip_data.manifests.manifest import Manifest, freeze, image_settings
from lotlip_data.manifests.run_layout import SHARD_DIGITS, Run
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.core import external_buckets
from lotlip_data.pipeline.core.external_buckets import ExternalBuckets, bucket_count
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.url_lists import reader
from lotlip_data.pipeline.url_lists.cells import GARBLED, GARBLED_REMEDY
from lotlip_data.pipeline.url_lists.files import stamp_of, uncompressed_bytes
from lotlip_data.pipeline.url_lists.headers import check_captions, lacks_texts
from lotlip_data.pipeline.url_lists.rows import BATCH_ROWS, BadRow

logger = logging.getLogger(__name__)

_HASHES = ("expected_sha256", "expected_md5")
_ROW_SCHEMA = pa.schema(
    [
        ("order", pa.uint64()),
        ("uid", pa.string()),
        ("ordinal", pa.int64()),
        ("source", pa.int32()),
        ("url", pa.string()),
        ("texts", pa.list_(pa.string())),
        *((kind, pa.string()) for kind in _HASHES),
    ]
)
_BAD_ROW_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("content", pa.string()),
    ]
)
_SAMPLER_SCHEMA = pa.schema([("order", pa.uint64())])
_SAMPLER_BUCKETS = 256  # of eight bytes per row: 80 MB each for 2.5 billion rows
_SAMPLER_BUFFER_BYTES = 8 << 20


class PartitionError(UserError):
    """The lists cannot be partitioned. The message says why and how to fix it."""


@dataclass(frozen=True)
class Partition:
    """The partition of a run: the counts in its `lists/plan.json`.

    `images` = rows − Σ invalid − Σ filtered − Σ not_drawn − duplicates, or the manifest's `sample` if that is less.
    """

    images: int
    shards: int
    samples_per_shard: int
    rows: int
    """Rows read, unusable ones included."""
    duplicates: int
    """Rows with the image of an earlier row. Their texts are kept."""
    invalid: dict[str, int]
    """Unusable rows by reason. Each of them is in quarantine/lists/00000.parquet."""
    sources: dict[str, int]
    """Usable rows by source, those that are not drawn included."""
    filtered: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows that a source's filter excludes: by source, then by the first rule that they fail."""
    not_drawn: dict[str, int] = field(default_factory=dict)
    """Usable rows outside a source's `sample`, by source."""
    garbled: dict[str, int] = field(default_factory=dict)
    """Usable rows by source whose text is not in UTF-8: its unreadable bytes are replaced by U+FFFD."""
    not_texts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Usable rows whose cell of texts holds something else, which is left out: by source, then by what it is."""
    blank: dict[str, int] = field(default_factory=dict)
    """Usable rows without a text, by source. Sources that have no column of texts are not counted."""
    stamps: dict[str, str] = field(default_factory=dict)
    """By source, its `files.stamp_of` when it was read."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The manifest's `image_settings`. Empty for a run of an earlier release."""
    version: int = 1


def load_partition(run: Run) -> Partition | None:
    """The run's partition, or None if it has none yet. Raises UserError if it is damaged."""
    remedy = f"Remove it; `lotlip-data download MANIFEST {run.url}` rebuilds it from the same lists."
    try:
        return artifacts.read_json(run.plan, remedy, Partition)
    except FileNotFoundError:
        return None


def partition(manifest: Manifest, run: Run) -> Partition:
    """Partition the manifest's lists into shards, unless the run has a partition already, and return it.

    The manifest is stored in the run once all lists are read, before the first shard is written. So a list that cannot
    be read leaves the run's folder free for a corrected manifest, and drivers with different manifests cannot mix.

    After a kill, the next call starts over and writes the same shards. Warnings report lists that are empty or not in
    UTF-8, and lists that have changed since they were partitioned.

    Args:
        manifest: The manifest.
        run: The run to write to.

    Raises:
        ListError: A list cannot be read.
        PartitionError: The lists have no usable row, or too many for one run.
        ManifestError: The run has another manifest.
        UserError: The run's partition is damaged.
    """
    if (existing := load_partition(run)) is not None:
        for name in _changed_sources(manifest, existing):
            logger.warning(
                f"{name}: the names, sizes or times of its files have changed since the run was partitioned. A run "
                "keeps its partition: if the rows have changed, use another run folder"
            )
        return existing
    storage.check_writable(run.lists)
    for source in manifest.sources:
        check_captions(source)
    stamps = {source.name: stamp for source in manifest.sources if (stamp := stamp_of(source))}
    with scratch_folder("partition") as folder:
        counts = _RowCounts(folder / "bad.parquet")
        total_bytes = sum(uncompressed_bytes(source) for source in manifest.sources)
        buckets = ExternalBuckets(folder, bucket_count(total_bytes), _ROW_SCHEMA, external_buckets.BUFFER_BYTES)
        samplers = {
            source.name: SourceSampler(folder, source) for source in manifest.sources if source.sample is not None
        }
        for index, source in enumerate(manifest.sources):
            _read_source(source, index, manifest.seed, counts, buckets, samplers.get(source.name))
        buckets.flush()
        counts.close()
        if counts.sources:
            freeze(manifest, run)
        _store_bad_rows(run, counts)
        if not counts.sources:
            raise PartitionError(_no_image_message(manifest, counts))
        result = _write_shards(manifest, run, buckets, samplers, counts)
        result = replace(result, stamps=stamps, settings=image_settings(manifest))
    storage.create(run.plan, artifacts.encode_json(asdict(result), indent=2))
    committed = load_partition(run)  # that of another driver, if it was first
    assert committed is not None
    rows, images = wording.count(committed.rows, "row"), wording.count(committed.images, "URL")
    logger.info(f"{rows}: {images} to download, in {wording.count(committed.shards, 'shard')}")
    return committed


def _changed_sources(manifest: Manifest, existing: Partition) -> list[str]:
    """Names of the sources whose files have changed since the partition. Missing files do not count."""
    stamps = {source.name: stamp_of(source) for source in manifest.sources if source.name in existing.stamps}
    return [name for name, stamp in stamps.items() if stamp not in (None, existing.stamps[name])]


def _read_source(
    source: Source,
    index: int,
    seed: int,
    counts: "_RowCounts",
    buckets: ExternalBuckets,
    sampler: "SourceSampler | None",
) -> None:
    """Add the usable rows of the manifest's source number `index` to the buckets, and its uids to its sampler."""
    logger.info(f"reading the list {source.name}")
    rows_before = counts.rows
    batches = reader.read_source(
        source,
        counts.reject,
        counts.filtered_counter(source.name),
        counts.defect_counter(source.name),
        lambda sentence: logger.info(f"{source.name}: {sentence}"),
    )
    for batch in batches:
        buckets.add(counts.with_order(batch, source.name, index, seed))
        if sampler:
            sampler.add(batch["uid"])
    if counts.rows == rows_before:
        logger.warning(f"{source.name}: no rows in {', '.join(source.files)}")
    _warn_about_texts(source, counts)


def _warn_about_texts(source: Source, counts: "_RowCounts") -> None:
    """Log which texts of a source are lost."""
    usable = counts.sources[source.name]
    if garbled := counts.garbled[source.name]:
        logger.warning(
            f"{source.name}: {garbled:,} of {usable:,} texts are {GARBLED_REMEDY}, and use another run folder"
        )
    for kind, rows in counts.not_texts[source.name].items():
        logger.warning(
            f"{source.name}: {rows:,} of {usable:,} cells of {reader.text_column(source)} are {kind}, not a text"
        )
    is_blank = source.text_column is not None and usable and counts.blank[source.name] == usable
    if is_blank or lacks_texts(source):
        logger.warning(f"{source.name}: {reader.all_blank(source)}")


class _RowCounts:
    """Counts the rows of all sources, numbers and orders the usable ones, and writes the unusable ones to a file."""

    def __init__(self, bad_rows: pathlib.Path) -> None:
        self.rows = 0
        self.invalid: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.filtered: dict[str, Counter[str]] = {}
        self.garbled: Counter[str] = Counter()
        self.not_texts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.blank: Counter[str] = Counter()
        self.bad_rows = bad_rows
        self._writer = artifacts.parquet_writer(bad_rows, _BAD_ROW_SCHEMA)
        self._unwritten: list[dict[str, str | int]] = []

    def reject(self, bad_row: BadRow) -> None:
        """Count an unusable row."""
        self.rows += 1
        self.invalid[bad_row.reason] += 1
        self._unwritten.append(asdict(bad_row))
        if len(self._unwritten) == BATCH_ROWS:
            self._write()

    def filtered_counter(self, source: str) -> reader.Filtered:
        """A function that counts the rows that the filter of `source` excludes."""
        reasons = self.filtered.setdefault(source, Counter())

        def count(reason: str, rows: int) -> None:
            self.rows += rows
            reasons[reason] += rows

        return count

    def defect_counter(self, source: str) -> reader.Defects:
        """A function that counts the rows of `source` whose text is not in UTF-8, or no text."""

        def count(defect: str, rows: int) -> None:
            counter = self.garbled if defect == GARBLED else self.not_texts[source]
            counter[source if defect == GARBLED else defect] += rows

        return count

    def with_order(self, batch: pa.RecordBatch, source: str, index: int, seed: int) -> pa.Table:
        """Count a batch of usable rows, and return it with their order: `reader.SCHEMA` becomes `_ROW_SCHEMA`."""
        count = batch.num_rows
        columns = {name: batch[name] for name in batch.schema.names} | {
            "order": hashes(batch["uid"], str(seed)),
            "ordinal": np.arange(self.rows, self.rows + count),
            "source": np.full(count, index, np.int32),
        }
        self.rows += count
        self.sources[source] += count
        self.blank[source] += reader.blank_rows(batch)
        return pa.table(columns, schema=_ROW_SCHEMA)

    def close(self) -> None:
        """Complete the file of unusable rows."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._unwritten, schema=_BAD_ROW_SCHEMA))
        self._unwritten = []


def _store_bad_rows(run: Run, counts: _RowCounts) -> None:
    url = run.quarantine("lists", "00000.parquet")
    storage.remove(url)  # a killed attempt may have left one
    if counts.invalid:
        storage.create_from_file(url, str(counts.bad_rows))


class SourceSampler:
    """Draws the `sample` of a source: the images with the lowest hashes of a key that is the source's own.

    Args:
        folder: The scratch folder, where the sampler has a folder of its own.
        source: A source with a `sample`.
    """

    def __init__(self, folder: pathlib.Path, source: Source) -> None:
        assert source.sample is not None
        self._sample, self._key = source.sample, f"sample {source.seed}"
        own_folder = folder / f"sample-{source.name}"
        own_folder.mkdir()
        self._buckets = ExternalBuckets(own_folder, _SAMPLER_BUCKETS, _SAMPLER_SCHEMA, _SAMPLER_BUFFER_BYTES)
        self._limit: int | None = None

    def add(self, uids: pa.Array) -> None:
        """Add the uids of rows of the source. A uid counts once, however often it is added."""
        self._buckets.add(pa.table([hashes(uids, self._key)], schema=_SAMPLER_SCHEMA))

    def mask(self, rows: pa.Table, source: int) -> pa.Array:
        """Which rows to keep: those of other sources, and those that are drawn. Call it after the last `add`.

        Args:
            rows: Rows with the columns `source` and `uid`.
            source: The number of this source in the manifest.

        Returns:
            One bool per row.
        """
        if self._limit is None:
            self._limit = self._highest_drawn_hash()
        is_own = rows["source"].to_numpy() == source
        keep = ~is_own
        keep[is_own] = hashes(rows["uid"].filter(pa.array(is_own)), self._key) <= np.uint64(self._limit)
        return pa.array(keep)

    def _highest_drawn_hash(self) -> int:
        self._buckets.flush()
        left = self._sample
        for bucket in self._buckets:
            distinct = np.unique(bucket["order"].to_numpy())
            if len(distinct) >= left:
                return int(distinct[left - 1])
            left -= len(distinct)
        return 2**64 - 1


def _write_shards(
    manifest: Manifest, run: Run, buckets: ExternalBuckets, samplers: Mapping[str, SourceSampler], counts: _RowCounts
) -> Partition:
    """Write the list shards, and remove those that a killed attempt with another manifest left behind them."""
    limit = manifest.sample if manifest.sample is not None else counts.rows
    unique = images = shards = 0
    waiting = LISTS.empty_table()
    names = [source.name for source in manifest.sources]
    not_drawn: Counter[str] = Counter()
    for rows in buckets:
        for name, sampler in samplers.items():
            drawn = rows.filter(sampler.mask(rows, names.index(name)))
            not_drawn[name] += rows.num_rows - drawn.num_rows
            rows = drawn
        merged = merge_duplicate_urls(rows, names)
        unique += merged.num_rows
        waiting = pa.concat_tables([waiting, merged.slice(0, max(0, limit - images))])
        images += min(merged.num_rows, limit - images)
        full_shards = waiting.num_rows // manifest.samples_per_shard
        for table in _slices(waiting, manifest.samples_per_shard, full_shards):
            _store_shard(run, shards, table)
            shards += 1
        waiting = waiting.slice(full_shards * manifest.samples_per_shard)
    if waiting.num_rows:
        _store_shard(run, shards, waiting)
        shards += 1
    _remove_shards_from(run, shards)
    return Partition(
        images=images,
        shards=shards,
        samples_per_shard=manifest.samples_per_shard,
        rows=counts.rows,
        duplicates=sum(counts.sources.values()) - not_drawn.total() - unique,
        invalid=dict(sorted(counts.invalid.items())),
        sources={name: counts.sources[name] for name in names},
        filtered={name: dict(reasons.most_common()) for name, reasons in counts.filtered.items() if reasons},
        not_drawn={name: not_drawn[name] for name in samplers},
        garbled={name: counts.garbled[name] for name in names if counts.garbled[name]},
        not_texts={name: dict(counts.not_texts[name]) for name in names if counts.not_texts[name]},
        blank={
            source.name: blank
            for source in manifest.sources
            if source.text_column is not None and (blank := counts.blank[source.name])
        },
    )


def _slices(table: pa.Table, length: int, count: int) -> Iterator[pa.Table]:
    return (table.slice(index * length, length) for index in range(count))


def _no_image_message(manifest: Manifest, counts: _RowCounts) -> str:
    files = ", ".join(file for source in manifest.sources for file in source.files)
    if not counts.rows:
        return f"no rows in {files}"
    by_reason = counts.invalid + sum(counts.filtered.values(), Counter())
    reasons = ", ".join(f"{count} × {reason}" for reason, count in by_reason.most_common())
    where = ". See quarantine/lists/00000.parquet" if counts.invalid else ""
    return f"none of the {counts.rows} rows of {files} can be used: {reasons}{where}"


def _store_shard(run: Run, shard: int, table: pa.Table) -> None:
    """Write one list shard.

    A different one that a killed attempt left is replaced, which is safe while the run has no partition.
    """
    if shard >= 10**SHARD_DIGITS:
        raise PartitionError(f"more than {10**SHARD_DIGITS} shards: set `samples_per_shard` higher in the manifest")
    data, url = artifacts.encode_parquet(table.combine_chunks()), run.list_shard(shard)
    if not storage.create(url, data) and storage.read_bytes(url) != data and load_partition(run) is None:
        storage.replace(url, data)


def _remove_shards_from(run: Run, first: int) -> None:
    """Remove the list shards from number `first` on, while the run has no partition, and so no retries."""
    if load_partition(run) is None:
        for name in storage.list_names(run.lists, ".parquet"):
            number = name.removesuffix(".parquet")
            if number.isdigit() and int(number) >= first:
                storage.remove(run.list_file(name))


def merge_duplicate_urls(rows: pa.Table, names: list[str]) -> pa.Table:
    """Merge rows with equal uids into one row per image, in the seeded order.

    Args:
        rows: Rows of `_ROW_SCHEMA`: all rows of the uids in it.
        names: Names of the sources, in the manifest's order.

    Returns:
        A table of `schema.LISTS`.
    """
    rows = rows.sort_by([("order", "ascending"), ("uid", "ascending"), ("ordinal", "ascending")]).combine_chunks()
    rows = _one_text_per_row(rows)
    # A single thread keeps the order. `first` skips nulls.
    expected = rows.group_by("uid", use_threads=False).aggregate([(kind, "first") for kind in _HASHES])
    rows = rows.filter(pa.array(_distinct(rows)))
    starts = _starts(rows)
    offsets = pa.array(np.append(starts, rows.num_rows), pa.int32())
    sources = pa.DictionaryArray.from_arrays(_combined(rows["source"]), pa.array(names)).dictionary_decode()
    first = rows.take(pa.array(starts))
    return pa.table(
        [
            _combined(first["uid"]),
            _combined(first["url"]),
            pa.ListArray.from_arrays(offsets, pc.fill_null(_combined(rows["text"]), "")),
            pa.ListArray.from_arrays(offsets, sources),
            *(_combined(expected[f"{kind}_first"]) for kind in _HASHES),
        ],
        schema=LISTS,
    )


def _one_text_per_row(rows: pa.Table) -> pa.Table:
    """The rows with a column `text` in place of `texts`; a row with several texts is repeated for each."""
    texts = _combined(rows["texts"])
    others = rows.drop_columns("texts").take(pc.list_parent_indices(texts))
    return others.append_column("text", texts.flatten())


def _starts(rows: pa.Table) -> np.ndarray:
    """The index of the first row of each uid, in rows that are sorted by uid; int64."""
    if not (count := rows.num_rows):
        return np.empty(0, np.int64)
    uids = _combined(rows["uid"])  # compared in Arrow: a Python object per uid would fragment the heap
    differs = pc.not_equal(uids.slice(1), uids.slice(0, count - 1)).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.append(True, differs))


def _distinct(rows: pa.Table) -> np.ndarray:
    """Which rows to keep; one bool per row.

    Left out are a row with the source and the text of an earlier row of the same uid, and a row of a file without a
    column of texts (its text is null) if another one of its source and uid is of a file with such a column.
    """
    keep = np.ones(rows.num_rows, bool)
    starts = np.append(_starts(rows), rows.num_rows)
    for index in np.flatnonzero(np.diff(starts) > 1):
        begin, end = int(starts[index]), int(starts[index + 1])
        group = rows.slice(begin, end - begin)
        pairs = list(zip(group["source"].to_pylist(), group["text"].to_pylist(), strict=True))
        with_text = {source for source, text in pairs if text is not None}
        seen: set[tuple[int, str]] = set()
        for offset, pair in enumerate(pairs):
            keep[begin + offset] = pair not in seen and (pair[1] is not None or pair[0] not in with_text)
            seen.add(pair)
    return keep


def _combined(column: pa.ChunkedArray) -> pa.Array:
    """The column as a single array."""
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def hashes(uids: pa.Array, key: str) -> np.ndarray:
    """A uniform hash per uid, uint64. Hashes with different keys are independent."""
    secret = key.encode()
    digests = (hashlib.blake2b(uid.encode(), key=secret, digest_size=8).digest() for uid in uids.to_pylist())
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
