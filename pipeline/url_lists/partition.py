"""Partitions the URL lists of a manifest into shards, once per run, before any download. Works out of core.

    rows of all sources → filtered → uid → buckets in seeded order → each bucket sorted, sources sampled, equal uids
    merged → cut into shards → lists/00000.parquet …, then lists/plan.json

The order is that of a hash of the uid, keyed by the manifest's seed. It mixes the sources and spreads the hosts over
the shards. The manifest's `sample` is the first rows of it. Neither depends on the number of buckets. A source's own
`sample` has exactly that number of its images, drawn by another hash with the source's seed.

A list shard has one row per image, with the columns `schema.LISTS`: its URL as the first source spells it, the texts of
all sources in the manifest's order ("" if a source has none), and the first expected hash of each kind.
"""

import logging
import pathlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

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
from lotlip_data.pipeline.url_lists.rows import BATCH_ROWS, BadRow, Reject
from lotlip_data.pipeline.url_lists.sampling import SourceSampler, hashes, split_sample

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


class PartitionError(UserError):
    """The lists cannot be partitioned. The message says why and how to fix it."""


@dataclass(frozen=True)
class Partition:
    """The partition of a run: the counts in its `lists/plan.json`.

    Without containers, `images` = rows − Σ invalid − Σ filtered − Σ not_drawn − duplicates, or the manifest's `sample`
    if that is less. Containers of images that exist already add their `container_rows`.
    """

    images: int
    shards: int
    """Those of lists, then those of containers."""
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
    container_rows: list[int] = field(default_factory=list)
    """The rows of each container, which is a shard; `samples_per_shard` for a container that does not tell."""
    uncounted: list[int] = field(default_factory=list)
    """The shards that are containers which do not tell their rows, such as tars. Empty for a run of an earlier release,
    which had them too."""
    version: int = 1

    @property
    def unit(self) -> str:
        """What the rows are: URLs to request, or images where some of them exist already."""
        return "image" if self.container_rows else "URL"

    @property
    def first_container(self) -> int:
        """Number of the first shard that is a container; `shards` if none is."""
        return self.shards - len(self.container_rows)

    def is_container(self, shard: int) -> bool:
        """Whether the images of a shard exist already. Shards from `shards` on are retries of URLs."""
        return self.first_container <= shard < self.shards

    def rows_of(self, shard: int) -> int:
        """The rows of a shard, as far as they are known before it is committed."""
        if self.is_container(shard):
            return self.container_rows[shard - self.first_container]
        listed = self.images - sum(self.container_rows)
        return min(self.samples_per_shard, listed - shard * self.samples_per_shard)

    def rows_with(self, committed: Mapping[int, int]) -> int:
        """The rows of all shards, where `committed` shards tell their number of rows.

        The other containers that do not tell are taken to have as many as those that are committed.
        """
        containers = range(self.first_container, self.shards)
        known = self.images + sum(committed[shard] - self.rows_of(shard) for shard in containers if shard in committed)
        counted = [committed[shard] for shard in self.uncounted if shard in committed]
        mean = sum(counted) / len(counted) if counted else self.samples_per_shard
        return known + round((mean - self.samples_per_shard) * (len(self.uncounted) - len(counted)))

    def is_estimate(self, committed: Collection[int]) -> bool:
        """Whether `rows_with` is an estimate."""
        return any(shard not in committed for shard in self.uncounted)


class ContainerShards(Protocol):
    """The containers of a manifest's image sources (`existing_images.partition.ExistingImages`)."""

    def ranks(self, number: int, count: int) -> np.ndarray:
        """The hashes, with the manifest's seed, of the images in the bucket `number` of `count`; uint64."""

    def store(self, run: Run, first: int, highest_rank: int | None) -> list[int | None]:
        """Write the containers with an image up to `highest_rank` as shards from `first` on.

        Returns their rows; None for a container that does not tell.
        """


def load_partition(run: Run) -> Partition | None:
    """The run's partition, or None if it has none yet. Raises UserError if it is damaged."""
    remedy = f"Remove it; `lotlip-data download MANIFEST {run.url}` rebuilds it from the same lists."
    try:
        return artifacts.read_json(run.plan, remedy, Partition)
    except FileNotFoundError:
        return None


def partition(
    manifest: Manifest,
    run: Run,
    containers: Callable[[Manifest, pathlib.Path, Reject], ContainerShards] | None = None,
) -> Partition:
    """Partition the manifest's lists into shards, unless the run has a partition already, and return it.

    The manifest is stored in the run once all lists are read, before the first shard is written. So a list that cannot
    be read leaves the run's folder free for a corrected manifest, and drivers with different manifests cannot mix.

    After a kill, the next call starts over and writes the same shards. Warnings report lists that are empty or not in
    UTF-8, and lists that have changed since they were partitioned.

    Args:
        manifest: The manifest.
        run: The run to write to.
        containers: Finds the containers of the image sources of the manifest, which become the last shards. Arguments:
            the manifest, a scratch folder, and what receives unusable rows. None if it has no such source.

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
    lists = _lists(manifest)
    for source in lists.values():
        check_captions(source)
    stamps = {source.name: stamp for source in lists.values() if (stamp := stamp_of(source))}
    with scratch_folder("partition") as folder:
        counts = _RowCounts(folder / "bad.parquet")
        total_bytes = sum(uncompressed_bytes(source) for source in lists.values())
        buckets = ExternalBuckets(folder, bucket_count(total_bytes), _ROW_SCHEMA, external_buckets.BUFFER_BYTES)
        samplers = {
            source.name: SourceSampler(folder, source) for source in lists.values() if source.sample is not None
        }
        for index, source in lists.items():
            _read_source(source, index, manifest.seed, counts, buckets, samplers.get(source.name))
        buckets.flush()
        images = containers(manifest, folder, counts.reject) if containers is not None else None
        counts.close()
        has_images = bool(counts.sources) or not lists
        if has_images:
            freeze(manifest, run)
        _store_bad_rows(run, counts)
        if not has_images:
            raise PartitionError(_no_image_message(lists.values(), counts))
        result = _write_shards(manifest, run, buckets, samplers, counts, images)
        result = replace(result, stamps=stamps, settings=image_settings(manifest))
    storage.create(run.plan, artifacts.encode_json(asdict(result), indent=2))
    committed = load_partition(run)  # that of another driver, if it was first
    assert committed is not None
    _log_partition(committed)
    return committed


def _lists(manifest: Manifest) -> dict[int, Source]:
    """The sources that are lists of URLs, by their number in the manifest."""
    return {index: source for index, source in enumerate(manifest.sources) if not source.is_images}


def _log_partition(partition: Partition) -> None:
    listed = partition.images - sum(partition.container_rows)
    if listed or not partition.container_rows:
        rows, images = wording.count(partition.rows, "row"), wording.count(listed, "URL")
        shards = wording.count(partition.first_container, "shard")
        logger.info(f"{rows}: {images} to download, in {shards}")
    if partition.container_rows:
        containers = wording.count(len(partition.container_rows), "container")
        logger.info(f"{containers} of images that exist, each of which becomes a shard")


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


def _write_shards(
    manifest: Manifest,
    run: Run,
    buckets: ExternalBuckets,
    samplers: Mapping[str, SourceSampler],
    counts: _RowCounts,
    existing: ContainerShards | None,
) -> Partition:
    """Write the list shards, and remove those that a killed attempt with another manifest left behind them."""
    limit, highest_rank = manifest.sample if manifest.sample is not None else counts.rows, None
    unique = images = shards = 0
    waiting = LISTS.empty_table()
    names = [source.name for source in manifest.sources]
    if existing is not None and manifest.sample is not None:
        drawn = {names.index(name): sampler for name, sampler in samplers.items()}
        limit, highest_rank = split_sample(manifest.sample, buckets, drawn, existing.ranks)
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
    told = existing.store(run, shards, highest_rank) if existing is not None else []
    container_rows = [manifest.samples_per_shard if rows is None else rows for rows in told]
    _remove_shards_from(run, shards, len(container_rows))
    return Partition(
        images=images + sum(container_rows),
        shards=shards + len(container_rows),
        container_rows=container_rows,
        uncounted=[shard for shard, rows in enumerate(told, shards) if rows is None],
        samples_per_shard=manifest.samples_per_shard,
        rows=counts.rows,
        duplicates=sum(counts.sources.values()) - not_drawn.total() - unique,
        invalid=dict(sorted(counts.invalid.items())),
        sources={source.name: counts.sources[source.name] for source in _lists(manifest).values()},
        filtered={name: dict(reasons.most_common()) for name, reasons in counts.filtered.items() if reasons},
        not_drawn={name: not_drawn[name] for name in samplers},
        garbled={name: counts.garbled[name] for name in names if counts.garbled[name]},
        not_texts={name: dict(counts.not_texts[name]) for name in names if counts.not_texts[name]},
        blank={
            source.name: blank
            for source in _lists(manifest).values()
            if source.text_column is not None and (blank := counts.blank[source.name])
        },
    )


def _slices(table: pa.Table, length: int, count: int) -> Iterator[pa.Table]:
    return (table.slice(index * length, length) for index in range(count))


def _no_image_message(lists: Iterable[Source], counts: _RowCounts) -> str:
    files = ", ".join(file for source in lists for file in source.files)
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
    check_shard_number(shard)
    store_list(run, run.list_shard(shard), artifacts.encode_parquet(table.combine_chunks()))


def check_shard_number(shard: int) -> None:
    """Raise PartitionError if a run cannot have so many shards."""
    if shard >= 10**SHARD_DIGITS:
        raise PartitionError(f"more than {10**SHARD_DIGITS} shards: set `samples_per_shard` higher in the manifest")


def store_list(run: Run, url: str, content: bytes) -> None:
    """Write what a shard reads, in place of other content that a killed attempt left."""
    if not storage.create(url, content) and storage.read_bytes(url) != content and load_partition(run) is None:
        storage.replace(url, content)


def _remove_shards_from(run: Run, lists: int, containers: int) -> None:
    """Remove what is not of this partition, while the run has none, and so no retries.

    Args:
        run: The run.
        lists: Number of its shards of lists, which come first.
        containers: Number of its containers.
    """
    if load_partition(run) is not None:
        return
    for name in storage.list_names(run.lists):
        number, _, ending = name.partition(".")
        kept = {"parquet": range(lists), "json": range(lists, lists + containers)}.get(ending)
        if kept is not None and number.isdigit() and int(number) not in kept:
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

    Left out are a row with the source and the text of an earlier row of the same uid, and a row without a text if
    another one of its source and uid has one. Rows of files without a column of texts (their text is null) give way to
    blank texts too.
    """
    keep = np.ones(rows.num_rows, bool)
    starts = np.append(_starts(rows), rows.num_rows)
    for index in np.flatnonzero(np.diff(starts) > 1):
        begin, end = int(starts[index]), int(starts[index + 1])
        group = rows.slice(begin, end - begin)
        pairs = list(zip(group["source"].to_pylist(), group["text"].to_pylist(), strict=True))
        best: dict[int, int] = {}
        for source, text in pairs:
            best[source] = max(best.get(source, 0), _rank(text))
        seen: set[tuple[int, str]] = set()
        for offset, (source, text) in enumerate(pairs):
            keep[begin + offset] = (source, text) not in seen and _rank(text) == best[source]
            seen.add((source, text))
    return keep


def _rank(text: str | None) -> int:
    return 0 if text is None else 1 if not text else 2


def _combined(column: pa.ChunkedArray) -> pa.Array:
    """The column as a single array."""
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
