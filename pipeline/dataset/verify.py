"""Whether a dataset is what its dataset.json says: all of it is read back; damaged, missing and foreign are named."""

import contextlib
import json
import pathlib
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.manifests import dataset_index, schema, storage
from lotlip_data.manifests.dataset_index import DatasetError, FileRecord, Output, ShardRecord
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import frozen
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.external_buckets import ExternalBuckets
from lotlip_data.pipeline.curation.filters import split_of
from lotlip_data.pipeline.dataset.join import SAMPLE
from lotlip_data.pipeline.dataset.metadata import Description
from lotlip_data.pipeline.dataset.publish import VIEWS, existing, names, stale_views
from lotlip_data.pipeline.dataset.stage import recipe_of
from lotlip_data.pipeline.dataset.writer import digest_of

KNOWN = frozenset({dataset_index.DATASET_JSON, dataset_index.MARKERS, *VIEWS})
"""What lies in `shards/` beside the shards themselves."""

_UIDS = pa.schema([("order", pa.uint64()), ("uid", pa.string()), ("shard", pa.int32())])
_UIDS_A_BUCKET = 250_000
_BUFFER_BYTES = 16 << 20


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
    description = dataset_index.read_index(run)
    records = dataset_index.read_records(description)
    problems = _listing(run, description, records) + _markers(run, records) + _views(run, description)
    if (samples := sum(output.samples for record in records for output in record.outputs)) != description["samples"]:
        problems.append(Problem(run.dataset, f"says {description['samples']} samples, its shards hold {samples}"))
    columns = schema.dataset(description["captioners"])
    owners = {file.sha256: file.name for record in records for file in record.files}
    with tempfile.TemporaryDirectory(prefix="lotlip-data-verify-") as scratch:
        uids = ExternalBuckets(pathlib.Path(scratch), 1 + samples // _UIDS_A_BUCKET, _UIDS, _BUFFER_BYTES)
        for record in records:
            problems += _dropped(run, record)
            for output in record.outputs:
                damaged = [problem for file in output.files for problem in _file(run, record, file, owners)]
                problems += damaged or _contents(run, output, record.shard, columns, uids, description)
        problems += _repeated(run, uids, records)
    return problems


def _rebuild(run: Run, record: ShardRecord) -> str:
    marker = dataset_index.marker(run, record.shard, record.fingerprint)
    return f"To build it again, remove {marker} and run `lotlip-data shard {run.url}`"


def _listing(run: Run, description: dict[str, Any], records: Sequence[ShardRecord]) -> list[Problem]:
    """Foreign names; what is missing is found when it is read.

    Whole shards that a rewrite left which was given up are none: they ask for nothing, and go by themselves.
    """
    again = f"run `lotlip-data shard {run.url}`"
    named, replaced = set(names(records)), set(description["replaced"])
    others = _others(run, records)
    left, waiting = set(names(others)), set(names(_waiting(run, others)))
    problems = []
    for name in sorted(set(existing(run)) - named - {f"shards/{known}" for known in KNOWN}):
        where = storage.join(run.url, name)
        if name in replaced:
            problems.append(Problem(where, f"was replaced, and is to be removed: {again}"))
        elif name not in left:
            given_up = f"left by a rewrite that was given up, it goes a day later: {again}"
            problems.append(Problem(where, f"foreign: {run.dataset} does not name it; {given_up}"))
        elif name in waiting and name.endswith(".json"):
            problems.append(Problem(where, f"built, but {run.dataset} does not know it yet: {again}"))
    return problems


def _others(run: Run, records: Sequence[ShardRecord]) -> list[ShardRecord]:
    """Shards that dataset.json does not name; a marker that cannot be read is foreign."""
    known = {(record.shard, record.fingerprint) for record in records}
    found = []
    for shard, fingerprint in dataset_index.done_shards(run):
        if (shard, fingerprint) not in known:
            with contextlib.suppress(DatasetError):
                found.append(dataset_index.read_record(run, shard, fingerprint))
    return found


def _waiting(run: Run, others: Sequence[ShardRecord]) -> list[ShardRecord]:
    """Those that the next dataset.json may name: built since this one was written, and as the run is set up now."""
    if not others:
        return []
    built = storage.last_change(storage.join(run.shards, dataset_index.MARKERS), {record.marker for record in others})
    written = storage.last_change(run.shards, {dataset_index.DATASET_JSON})
    if built is not None and written is not None and built < written:
        return []
    try:
        recipe = recipe_of(run, frozen(run)).id
    except UserError:  # a dataset without the run that made it: nothing is to be built
        return []
    return [record for record in others if record.recipe == recipe]


def _views(run: Run, description: dict[str, Any]) -> list[Problem]:
    what = f"missing, or not of the dataset that {run.dataset} names: run `lotlip-data shard {run.url}`"
    return [Problem(storage.join(run.shards, name), what) for name in stale_views(run, Description.of(description))]


def _markers(run: Run, records: Sequence[ShardRecord]) -> list[Problem]:
    done, problems = set(dataset_index.done_shards(run)), []
    for record in records:
        where, again = dataset_index.marker(run, record.shard, record.fingerprint), f"run `lotlip-data shard {run.url}`"
        if (record.shard, record.fingerprint) in done:
            problems += _marker(run, where, record, again)
        else:
            problems.append(Problem(where, f"is missing, though {run.dataset} names the shard: {again}"))
    return problems


def _marker(run: Run, where: str, record: ShardRecord, again: str) -> list[Problem]:
    try:
        held = dataset_index.read_record(run, record.shard, record.fingerprint)
    except DatasetError:
        return [Problem(where, f"damaged: remove it and {again}")]
    if held != record:
        return [Problem(where, f"says other things of the shard than {run.dataset}: remove it and {again}")]
    return []


def _dropped(run: Run, record: ShardRecord) -> list[Problem]:
    """The list of what was left out of a shard: is it there, and does it count what the marker counts?"""
    if record.dropped_list is None:
        return []
    where = run.quarantine(record.dropped_list)
    try:
        with storage.open_read(where) as stream:
            found = Counter(
                (row["what"], row["reason"]) for row in pq.read_table(stream, columns=["what", "reason"]).to_pylist()
            )
    except FileNotFoundError:
        return [Problem(where, f"missing. {_rebuild(run, record)}")]
    except (OSError, ValueError) as error:
        return [Problem(where, f"damaged ({error}): remove it. {_rebuild(run, record)}")]
    by_what = {SAMPLE: record.dropped} | record.dropped_texts
    counted = Counter({(what, reason): count for what, few in by_what.items() for reason, count in few.items()})
    return (
        []
        if found == counted
        else [Problem(where, f"lists other things than the marker counts. {_rebuild(run, record)}")]
    )


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


def _contents(
    run: Run, output: Output, shard: int, columns: pa.Schema, uids: ExternalBuckets, description: dict[str, Any]
) -> list[Problem]:
    """A tar and a Parquet that are as they were written: do they hold the same samples, complete and as counted?"""
    tar_url, parquet_url = (storage.join(run.shards, file.name) for file in output.files)
    with storage.open_read(parquet_url) as stream:
        table = pq.read_table(stream)
    if not table.schema.equals(columns):
        return [Problem(parquet_url, f"has other columns than {run.dataset} says: {', '.join(table.schema.names)}")]
    rows = list(zip(table["key"].to_pylist(), table["uid"].to_pylist(), strict=True))
    _note(uids, table["uid"], shard)
    problems, found = [], []
    for sample in _samples(tar_url):
        found.append((sample.key, sample.uid))
        if sample.endings != schema.EXTENSIONS:
            problems.append(Problem(tar_url, f"sample {sample.key} has members {', '.join(sorted(sample.endings))}"))
    if found != rows:
        odd = sorted(set(found) ^ set(rows))
        what = f"sample {odd[0][0]} (uid {odd[0][1]}) among them" if odd else "or in another order"
        problems.append(Problem(tar_url, f"holds other samples than {parquet_url}, {what}"))
    if len(rows) != output.samples:
        problems.append(Problem(parquet_url, f"has {len(rows)} rows, {run.dataset} says {output.samples}"))
    if strayed := [uid for _, uid in rows if split_of(uid, description["rules"]["validation"]) != output.split]:
        problems.append(
            Problem(tar_url, f"{len(strayed)} samples of the other split, that of uid {strayed[0]} among them")
        )
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


def _note(uids: ExternalBuckets, column: Any, shard: int) -> None:
    order = np.array([int(uid[:16], 16) for uid in column.to_pylist()], dtype=np.uint64)
    shards = pa.array(np.full(len(order), shard, dtype=np.int32))
    uids.add(pa.Table.from_arrays([pa.array(order), column, shards], schema=_UIDS))


def _repeated(run: Run, uids: ExternalBuckets, records: Sequence[ShardRecord]) -> list[Problem]:
    """Uids that stand in the dataset more than once."""
    tars = {record.shard: ", ".join(output.tar.name for output in record.outputs) for record in records}
    uids.flush()
    problems = []
    for bucket in uids:
        counts = bucket.group_by("uid").aggregate([("shard", "count"), ("shard", "min"), ("shard", "max")])
        for row in counts.filter(pc.field("shard_count") > 1).to_pylist():
            first, last = (tars[row[f"shard_{which}"]] for which in ("min", "max"))
            problems.append(
                Problem(run.shards, f"uid {row['uid']} stands {row['shard_count']} times, in {first} and {last}")
            )
    return problems
