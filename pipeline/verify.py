"""Whether a dataset is what its dataset.json says: all of it is read back; damaged, missing and foreign are named."""

import json
import pathlib
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.manifests import schema, storage
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import dataset
from lotlip_data.pipeline.dataset import ShardRecord
from lotlip_data.pipeline.shard_files import FileRecord, digest_of
from lotlip_data.pipeline.spill import Buckets

KNOWN = frozenset({dataset.DATASET_JSON, dataset.MARKERS})
"""What lies in `shards/` beside the shards themselves."""

_UIDS = pa.schema([("order", pa.uint64()), ("uid", pa.string()), ("shard", pa.int32())])
_UIDS_A_BUCKET = 1_000_000
_BUFFER_BYTES = 64 << 20


@dataclass(frozen=True)
class Problem:
    """`where` is a path or URL, `what` says what is wrong with it and how to mend it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def verify(run: Run) -> list[Problem]:
    """Read the dataset back; an empty list where it is intact.

    Every file's bytes and sha256, every tar against its Parquet, every marker against dataset.json, every uid against
    all others. Memory does not grow with the number of shards. Raises DatasetError where there is no dataset.
    """
    description = dataset.read(run)
    records = dataset.records(description)
    problems = _listing(run, records) + _markers(run, records)
    if (samples := sum(record.samples for record in records)) != description["samples"]:
        problems.append(Problem(run.dataset, f"says {description['samples']} samples, its shards hold {samples}"))
    columns = schema.dataset(description["captioners"])
    owners = {file.sha256: file.name for record in records for file in record.files}
    with tempfile.TemporaryDirectory(prefix="lotlip-data-verify-") as scratch:
        uids = Buckets(pathlib.Path(scratch), 1 + samples // _UIDS_A_BUCKET, _UIDS, _BUFFER_BYTES)
        for record in records:
            damaged = [problem for file in record.files for problem in _file(run, record, file, owners)]
            problems += damaged
            if record.files and not damaged:
                problems += _contents(run, record, columns, uids)
        problems += _repeated(run, uids)
    return problems


def _rebuild(run: Run, record: ShardRecord) -> str:
    return f"To build it again, remove {dataset.marker(run, record.shard)} and run `lotlip-data shard {run.url}`"


def _listing(run: Run, records: Sequence[ShardRecord]) -> list[Problem]:
    """Foreign names; what is missing is found when it is read."""
    named = {file.name for record in records for file in record.files}
    foreign = sorted(set(storage.list_names(run.shards)) - named - KNOWN)
    return [Problem(storage.join(run.shards, name), f"foreign: {run.dataset} does not name it") for name in foreign]


def _markers(run: Run, records: Sequence[ShardRecord]) -> list[Problem]:
    described, done = {record.shard: record for record in records}, set(dataset.done_shards(run))
    problems = []
    for shard in sorted(described.keys() | done):
        where, record = dataset.marker(run, shard), described.get(shard)
        again = f"run `lotlip-data shard {run.url}`"
        if record is None:
            problems.append(Problem(where, f"{run.dataset} does not know this shard: {again}"))
        elif shard not in done:
            problems.append(Problem(where, f"is missing, though {run.dataset} names the shard: {again}"))
        else:
            problems += _marker(run, where, record, again)
    return problems


def _marker(run: Run, where: str, record: ShardRecord, again: str) -> list[Problem]:
    try:
        held = dataset.read_record(run, record.shard)
    except (ValueError, TypeError, KeyError) as error:
        return [Problem(where, f"damaged ({error}): remove it and {again}")]
    if held != record:
        return [Problem(where, f"says other things of the shard than {run.dataset}: {again}")]
    return []


def _file(run: Run, record: ShardRecord, file: FileRecord, owners: dict[str, str]) -> list[Problem]:
    where = storage.join(run.shards, file.name)
    try:
        size, sha256 = digest_of(where)
    except FileNotFoundError:
        return [Problem(where, f"missing. {_rebuild(run, record)}")]
    if sha256 == file.sha256:
        return []
    if sha256 in owners:
        what = f"holds what belongs into {owners[sha256]}"
    elif size != file.bytes:
        what = f"damaged: it has {size} bytes, not {file.bytes}"
    else:
        what = f"damaged: its sha256 is {sha256}, not {file.sha256}"
    return [Problem(where, f"{what}. {_rebuild(run, record)}")]


def _contents(run: Run, record: ShardRecord, columns: pa.Schema, uids: Buckets) -> list[Problem]:
    """A tar and a Parquet that are as they were written: do they hold the same samples, complete and as counted?"""
    tar_url, parquet_url = (storage.join(run.shards, file.name) for file in record.files)
    with storage.open_read(parquet_url) as stream:
        table = pq.read_table(stream)
    if not table.schema.equals(columns):
        return [Problem(parquet_url, f"has other columns than {run.dataset} says: {', '.join(table.schema.names)}")]
    rows = list(zip(table["key"].to_pylist(), table["uid"].to_pylist(), strict=True))
    _note(uids, table["uid"], record.shard)
    problems, found = [], []
    for sample in _samples(tar_url):
        found.append((sample.key, sample.uid))
        if sample.endings != schema.EXTENSIONS:
            problems.append(Problem(tar_url, f"sample {sample.key} has members {', '.join(sorted(sample.endings))}"))
    if found != rows:
        odd = sorted(set(found) ^ set(rows))
        what = f"sample {odd[0][0]} (uid {odd[0][1]}) among them" if odd else "or in another order"
        problems.append(Problem(tar_url, f"holds other samples than {parquet_url}, {what}"))
    if len(rows) != record.samples:
        problems.append(Problem(parquet_url, f"has {len(rows)} rows, {run.dataset} says {record.samples}"))
    return problems


@dataclass
class _Sample:
    key: str
    uid: str = ""
    endings: set[str] = field(default_factory=set)


def _samples(url: str) -> Iterator[_Sample]:
    """The samples of a tar, each from members that follow one another."""
    sample = None
    with storage.open_read(url) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            key, _, ending = member.name.partition(".")
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample = _Sample(key)
            sample.endings.add(ending)
            if ending == "json" and (content := tar.extractfile(member)) is not None:
                sample.uid = json.loads(content.read())["uid"]
    if sample is not None:
        yield sample


def _note(uids: Buckets, column: Any, shard: int) -> None:
    order = np.array([int(uid[:16], 16) for uid in column.to_pylist()], dtype=np.uint64)
    shards = pa.array(np.full(len(order), shard, dtype=np.int32))
    uids.add(pa.Table.from_arrays([pa.array(order), column, shards], schema=_UIDS))


def _repeated(run: Run, uids: Buckets) -> list[Problem]:
    """Uids that stand in the dataset more than once."""
    uids.flush()
    problems = []
    for bucket in uids:
        counts = bucket.group_by("uid").aggregate([("shard", "count"), ("shard", "min"), ("shard", "max")])
        for row in counts.filter(pc.field("shard_count") > 1).to_pylist():
            first, last = (dataset.file_name(row[f"shard_{which}"], "tar") for which in ("min", "max"))
            problems.append(
                Problem(run.shards, f"uid {row['uid']} stands {row['shard_count']} times, in {first} and {last}")
            )
    return problems
