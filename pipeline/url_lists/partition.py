"""Which image is fetched in which shard: decided once, before anything is fetched, out of core.

    rows of all sources → filtered → uid → spilled into buckets of the seeded order → each bucket sorted, a source's
    sample drawn, equal uids merged → cut into shards → lists/00000.parquet …, then lists/plan.json

The order is that of a hash of the uid, keyed by the manifest's seed: it mixes the sources and spreads the hosts, a
sample is its first rows, and neither depends on how many buckets there are. A list shard has one row an image (columns
in `schema.LISTS`): its URL as the first source spells it, the texts of all sources in the manifest's order, ""
where a source has none, and the first hash of each kind that a list expects.

Rows with equal uids into one image: its texts and where each came from, and the hashes that its lists expect.

A source's sample: exactly so many of its images, drawn by a seed, whatever the order of its lists, out of core.
"""

import hashlib
import io
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import SHARD_DIGITS, Run
from lotlip_data.manifests.schema import LISTS
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.core import external_buckets
from lotlip_data.pipeline.core.external_buckets import ExternalBuckets, bucket_count
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.url_lists import reader

logger = logging.getLogger(__name__)

_ROW_SCHEMA = pa.schema(
    [
        ("order", pa.uint64()),
        ("uid", pa.string()),
        ("ordinal", pa.int64()),
        ("source", pa.int32()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("expected_sha256", pa.string()),
        ("expected_md5", pa.string()),
    ]
)
_BAD_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("content", pa.string()),
    ]
)


class PartitionError(UserError):
    """The lists cannot be partitioned; the message says why and what to do."""


@dataclass(frozen=True)
class Partition:
    """What is to be fetched.

    `images` = rows − Σ invalid − Σ filtered − Σ not_drawn − duplicates, or the manifest's `sample` if that is less.
    """

    images: int
    shards: int
    samples_per_shard: int
    rows: int
    """Rows read, unusable ones included."""
    duplicates: int
    """Rows whose image an earlier row has; their texts are kept."""
    invalid: dict[str, int]
    """Unusable rows by reason; each of them is in quarantine/lists/00000.parquet."""
    sources: dict[str, int]
    """Usable rows by source, those that are not drawn included."""
    filtered: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows that a source's filter leaves out: by source, then by the first rule that they fail."""
    not_drawn: dict[str, int] = field(default_factory=dict)
    """Usable rows beyond a source's `sample`, by source."""
    garbled: dict[str, int] = field(default_factory=dict)
    """Usable rows of which the text is not in UTF-8, by source: what could not be read of it is U+FFFD."""
    stamps: dict[str, str] = field(default_factory=dict)
    """Of each source's files when they were read: `reader.stamp_of`."""
    version: int = 1


def load_partition(run: Run) -> Partition | None:
    """The run's plan, None where it has not been partitioned yet. Raises UserError where it is damaged."""
    remedy = f"Remove it; `lotlip-data download MANIFEST {run.url}` makes it again from the same lists."
    try:
        content = artifacts.read_json(run.plan, remedy)
    except FileNotFoundError:
        return None
    known = {one.name: content[one.name] for one in fields(Partition) if one.name in content}
    try:
        return Partition(**known)
    except TypeError as error:  # a field is missing
        raise UserError(f"{run.plan}: not a plan ({error}). {remedy}") from None


def partition(manifest: Manifest, run: Run) -> Partition:
    """Cut the manifest's lists into shards, unless the run has its plan already, and return the plan.

    Started again after a kill, it starts over and gives the same shards. Lists that are empty, not in UTF-8, or changed
    since the plan was made are logged as warnings. Raises `reader.ListError` for a list that cannot be read,
    PartitionError where no usable row is left.
    """
    if (plan := load_partition(run)) is not None:
        for name in _changed(manifest, plan):
            logger.warning(
                f"{name}: its files are not those that were cut into shards, by name, size or time. A run's lists are "
                "fixed: if their rows are others, use another run folder for them"
            )
        return plan
    stamps = {source.name: stamp for source in manifest.sources if (stamp := reader.stamp_of(source))}
    with scratch_folder("partition") as folder:
        tally = _Tally(folder / "bad.parquet")
        total = sum(reader.uncompressed_bytes(source) for source in manifest.sources)
        buckets = ExternalBuckets(folder, bucket_count(total), _ROW_SCHEMA, external_buckets.BUFFER_BYTES)
        draws = {source.name: SourceSampler(folder, source) for source in manifest.sources if source.sample is not None}
        for index, source in enumerate(manifest.sources):
            logger.info(f"reading the list {source.name}")
            before, draw = tally.rows, draws.get(source.name)
            for batch in reader.read_source(source, tally.reject, tally.of(source.name), tally.garbled_in(source.name)):
                buckets.add(tally.ordered(batch, source.name, index, manifest.seed))
                if draw:
                    draw.add(batch["uid"])
            if tally.rows == before:
                logger.warning(f"{source.name}: no rows in {', '.join(source.files)}")
            if garbled := tally.garbled[source.name]:
                texts = f"{garbled:,} of {tally.sources[source.name]:,} texts"
                logger.warning(f"{source.name}: {texts} are {reader.GARBLED}, and use another run folder")
        buckets.flush()
        tally.close()
        _store_bad_rows(run, tally)
        plan = replace(_write_shards(manifest, run, buckets, draws, tally), stamps=stamps)
    storage.create(run.plan, json.dumps(asdict(plan), indent=2).encode())
    committed = load_partition(run)  # another driver's, where that was first
    assert committed is not None
    logger.info(f"{committed.rows} rows: {committed.images} images in {committed.shards} shards")
    return committed


def _changed(manifest: Manifest, plan: Partition) -> list[str]:
    """Sources of which the files are others than when the plan was made. Of files that are gone nothing is known."""
    now = {source.name: reader.stamp_of(source) for source in manifest.sources if source.name in plan.stamps}
    return [name for name, stamp in now.items() if stamp not in (None, plan.stamps[name])]


class _Tally:
    """Counts rows, gives the usable ones their order, and writes the others down."""

    def __init__(self, bad_rows: pathlib.Path) -> None:
        self.rows = 0
        self.invalid: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.filtered: dict[str, Counter[str]] = {}
        self.garbled: Counter[str] = Counter()
        self.bad_rows = bad_rows
        self._writer = pq.ParquetWriter(bad_rows, _BAD_SCHEMA)
        self._bad: list[dict[str, str | int]] = []

    def reject(self, bad: reader.BadRow) -> None:
        self.rows += 1
        self.invalid[bad.reason] += 1
        self._bad.append(asdict(bad))
        if len(self._bad) == reader.BATCH_ROWS:
            self._write()

    def of(self, source: str) -> reader.Filtered:
        """Counts the rows that the filter of this source leaves out."""
        reasons = self.filtered.setdefault(source, Counter())

        def count(reason: str, rows: int) -> None:
            self.rows += rows
            reasons[reason] += rows

        return count

    def garbled_in(self, source: str) -> reader.Garbled:
        """Counts the rows of this source of which the text is not in UTF-8."""

        def count(rows: int) -> None:
            self.garbled[source] += rows

        return count

    def ordered(self, batch: pa.RecordBatch, name: str, index: int, seed: int) -> pa.Table:
        """The rows of a batch of `reader.SCHEMA`, as a table of `_ROW_SCHEMA`."""
        count = batch.num_rows
        columns = {name: batch[name] for name in batch.schema.names} | {
            "order": hashes(batch["uid"], str(seed)),
            "ordinal": np.arange(self.rows, self.rows + count),
            "source": np.full(count, index, np.int32),
        }
        self.rows += count
        self.sources[name] += count
        return pa.table(columns, schema=_ROW_SCHEMA)

    def close(self) -> None:
        self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._bad, schema=_BAD_SCHEMA))
        self._bad = []


def _store_bad_rows(run: Run, tally: _Tally) -> None:
    target = run.quarantine("lists", "00000.parquet")
    storage.remove(target)  # of an attempt that was killed
    if tally.invalid:
        storage.create_from_file(target, str(tally.bad_rows))


class SourceSampler:
    """The `sample` images of a source with the lowest hashes; their order in the run is another hash's."""

    def __init__(self, folder: pathlib.Path, source: Source) -> None:
        assert source.sample is not None
        self._sample, self._key = source.sample, f"sample {source.seed}"
        own = folder / f"draw-{source.name}"
        own.mkdir()
        self._buckets = ExternalBuckets(own, _BUCKETS, _SCHEMA, _BUFFER_BYTES)
        self._limit: int | None = None

    def add(self, uids: pa.Array) -> None:
        """The uids of some rows; one that several rows have counts once."""
        self._buckets.add(pa.table([hashes(uids, self._key)], schema=_SCHEMA))

    def taken(self, rows: pa.Table, source: int) -> pa.Array:
        """Of rows with `source` and `uid`, those that are not this source's or are drawn; called after the last add."""
        if self._limit is None:
            self._limit = self._find_limit()
        ours = rows["source"].to_numpy() == source
        taken = ~ours
        taken[ours] = hashes(rows["uid"].filter(pa.array(ours)), self._key) <= np.uint64(self._limit)
        return pa.array(taken)

    def _find_limit(self) -> int:
        """The hash of the last image that is drawn."""
        self._buckets.flush()
        left = self._sample
        for bucket in self._buckets:
            found = np.unique(bucket["order"].to_numpy())
            if len(found) >= left:
                return int(found[left - 1])
            left -= len(found)
        return 2**64 - 1


def _write_shards(
    manifest: Manifest, run: Run, buckets: ExternalBuckets, draws: Mapping[str, SourceSampler], tally: _Tally
) -> Partition:
    wanted = manifest.sample if manifest.sample is not None else tally.rows
    unique = images = shards = 0
    waiting = LISTS.empty_table()
    names = [source.name for source in manifest.sources]
    not_drawn: Counter[str] = Counter()
    for rows in buckets:
        for name, draw in draws.items():
            drawn = rows.filter(draw.taken(rows, names.index(name)))
            not_drawn[name] += rows.num_rows - drawn.num_rows
            rows = drawn
        merged = merge_duplicate_urls(rows, names)
        unique += merged.num_rows
        waiting = pa.concat_tables([waiting, merged.slice(0, max(0, wanted - images))])
        images += min(merged.num_rows, wanted - images)
        full = waiting.num_rows // manifest.samples_per_shard
        for table in _slices(waiting, manifest.samples_per_shard, full):
            _store_shard(run, shards, table)
            shards += 1
        waiting = waiting.slice(full * manifest.samples_per_shard)
    if waiting.num_rows:
        _store_shard(run, shards, waiting)
        shards += 1
    if not images:
        raise PartitionError(_nothing(manifest, tally))
    return Partition(
        images=images,
        shards=shards,
        samples_per_shard=manifest.samples_per_shard,
        rows=tally.rows,
        duplicates=sum(tally.sources.values()) - not_drawn.total() - unique,
        invalid=dict(sorted(tally.invalid.items())),
        sources={name: tally.sources[name] for name in names},
        filtered={name: dict(reasons.most_common()) for name, reasons in tally.filtered.items() if reasons},
        not_drawn={name: not_drawn[name] for name in draws},
        garbled={name: tally.garbled[name] for name in names if tally.garbled[name]},
    )


def _slices(table: pa.Table, length: int, count: int) -> Iterator[pa.Table]:
    return (table.slice(index * length, length) for index in range(count))


def _nothing(manifest: Manifest, tally: _Tally) -> str:
    files = ", ".join(file for source in manifest.sources for file in source.files)
    if not tally.rows:
        return f"no rows: {files} holds none"
    why = tally.invalid + sum(tally.filtered.values(), Counter())
    reasons = ", ".join(f"{count} × {reason}" for reason, count in why.most_common())
    where = ". See quarantine/lists/00000.parquet" if tally.invalid else ""
    return f"no rows that can be used among the {tally.rows} of {files}: {reasons}{where}"


def _store_shard(run: Run, shard: int, table: pa.Table) -> None:
    """Write one list shard. One that a killed attempt left is replaced where it differs: there is no plan yet."""
    if shard >= 10**SHARD_DIGITS:
        raise PartitionError(f"more than {10**SHARD_DIGITS} shards: set `samples_per_shard` higher in the manifest")
    stream = io.BytesIO()
    pq.write_table(table.combine_chunks(), stream, compression="zstd")
    data, url = stream.getvalue(), run.list_shard(shard)
    if not storage.create(url, data) and storage.read_bytes(url) != data and load_partition(run) is None:
        storage.replace(url, data)


_HASHES = ("expected_sha256", "expected_md5")


def merge_duplicate_urls(rows: pa.Table, names: list[str]) -> pa.Table:
    """Rows of `partition`, all that some uids have, in the seeded order and merged: a table of `schema.LISTS`."""
    rows = rows.sort_by([("order", "ascending"), ("uid", "ascending"), ("ordinal", "ascending")]).combine_chunks()
    # One thread keeps the order; the first hash is the first that is not null.
    expected = rows.group_by("uid", use_threads=False).aggregate([(kind, "first") for kind in _HASHES])
    rows = rows.filter(pa.array(_distinct(rows)))
    starts = _starts(rows)
    offsets = pa.array(np.append(starts, rows.num_rows), pa.int32())
    sources = pa.DictionaryArray.from_arrays(_one(rows["source"]), pa.array(names)).dictionary_decode()
    first = rows.take(pa.array(starts))
    return pa.table(
        [
            _one(first["uid"]),
            _one(first["url"]),
            pa.ListArray.from_arrays(offsets, _one(rows["text"])),
            pa.ListArray.from_arrays(offsets, sources),
            *(_one(expected[f"{kind}_first"]) for kind in _HASHES),
        ],
        schema=LISTS,
    )


def _starts(rows: pa.Table) -> np.ndarray:
    """Where each uid begins in rows sorted by it; int64."""
    if not (count := rows.num_rows):
        return np.empty(0, np.int64)
    uids = _one(rows["uid"])  # compared as Arrow has them: a Python object for each would scatter the heap
    others = pc.not_equal(uids.slice(1), uids.slice(0, count - 1)).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.append(True, others))


def _distinct(rows: pa.Table) -> np.ndarray:
    """False for a row whose source and text an earlier row of the same uid has; bool, one a row."""
    keep = np.ones(rows.num_rows, bool)
    starts = np.append(_starts(rows), rows.num_rows)
    for index in np.flatnonzero(np.diff(starts) > 1):
        begin, end = int(starts[index]), int(starts[index + 1])
        group = rows.slice(begin, end - begin)
        seen: set[tuple[int, str]] = set()
        for offset, pair in enumerate(zip(group["source"].to_pylist(), group["text"].to_pylist(), strict=True)):
            keep[begin + offset] = pair not in seen
            seen.add(pair)
    return keep


def _one(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


_SCHEMA = pa.schema([("order", pa.uint64())])
_BUCKETS = 256  # of eight bytes a row: 80 MB each for 2.5 billion rows
_BUFFER_BYTES = 8 << 20


def hashes(uids: pa.Array, key: str) -> np.ndarray:
    """A uniform uint64 for each uid; another `key` gives an independent one."""
    secret = key.encode()
    digests = (hashlib.blake2b(uid.encode(), key=secret, digest_size=8).digest() for uid in uids.to_pylist())
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
