"""Verifies a dataset: reads all of it back and compares it with its dataset.json.

Damaged, missing, swapped and foreign files are reported, each with what to do about it.
"""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.digests import digest_of
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index, schema, tar_reader
from lotlip_data.manifests.formats.dataset_index import REPLACED, DatasetError, FileRecord, ShardFile, ShardRecord
from lotlip_data.manifests.manifest import frozen
from lotlip_data.manifests.progress import track
from lotlip_data.manifests.run_layout import DATASET_JSON, MARKERS, Run
from lotlip_data.pipeline.core.external_buckets import ExternalBuckets
from lotlip_data.pipeline.curation.filters import split_of
from lotlip_data.pipeline.dataset.join import SAMPLE
from lotlip_data.pipeline.dataset.metadata import Description
from lotlip_data.pipeline.dataset.publish import VIEWS, existing, paths_of, stale_views
from lotlip_data.pipeline.dataset.recipe import recipe_of

_VIEWS_AND_INDEX = (DATASET_JSON, MARKERS, *VIEWS)
"""What is in `shards/` besides the shards."""

_UIDS = pa.schema([("order", pa.uint64()), ("uid", pa.string()), ("shard", pa.int32())])
_UIDS_PER_BUCKET = 250_000
_BUFFER_BYTES = 16 << 20


@dataclass(frozen=True)
class Problem:
    """What is wrong with an object, and what to do about it."""

    where: str
    """A path or URL."""
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def verify(run: Run) -> list[Problem]:
    """Read the dataset back; the list is empty if it is intact.

    Checks bytes and sha256 of every file, every tar against its Parquet file, every marker against dataset.json, and
    every uid against all others. Memory does not grow with the number of shards. Raises DatasetError if there is no
    dataset.
    """
    content = dataset_index.read_index(run)
    records = dataset_index.read_records(run, content)
    problems = _check_names(run, content, records) + _check_markers(run, records) + _check_views(run, content)
    if (samples := sum(output.samples for record in records for output in record.outputs)) != content["samples"]:
        problems.append(
            Problem(run.dataset, f"says that it has {content['samples']} samples, but its shards have {samples}")
        )
    owners = {file.sha256: file.name for record in records for file in record.files}
    with tempfile.TemporaryDirectory(prefix="lotlip-data-verify-") as scratch:
        uids = ExternalBuckets(Path(scratch), 1 + samples // _UIDS_PER_BUCKET, _UIDS, _BUFFER_BYTES)
        for record in track(records, "verify", "shard"):
            problems += _check_dropped_list(run, record)
            for output in record.outputs:
                damage = [problem for file in output.files for problem in _check_file(run, record, file, owners)]
                problems += damage or _check_samples(run, record, output, content, uids)
        problems += _check_duplicates(run, uids, records)
    return problems


def _shard_command(run: Run) -> str:
    return f"run `lotlip-data shard {run.url}`"


def _rebuild(run: Run, record: ShardRecord) -> str:
    marker = dataset_index.marker(run, record.shard, record.fingerprint)
    return f"To build it again, remove {marker} and {_shard_command(run)}"


def _check_names(run: Run, content: dict[str, Any], records: Sequence[ShardRecord]) -> list[Problem]:
    """Objects in the folders of the dataset that do not belong there. Missing ones are reported when they are read.

    Complete shards of an abandoned rewrite are no problem: they need no action and are removed in time.
    """
    named, replaced = set(paths_of(run, records)), set(content[REPLACED])
    unnamed = _unnamed_records(run, records)
    complete, pending = set(paths_of(run, unnamed)), set(paths_of(run, _pending_records(run, unnamed)))
    expected = named | {run.relative(run.dataset_file(name)) for name in _VIEWS_AND_INDEX}
    problems = []
    for path in sorted(set(existing(run)) - expected):
        where = run.at_path(path)
        if path in replaced:
            problems.append(Problem(where, f"was replaced and should have been removed: {_shard_command(run)}"))
        elif path not in complete:
            abandoned = f"a file of an abandoned rewrite is removed a day later: {_shard_command(run)}"
            problems.append(Problem(where, f"foreign: {run.dataset} does not name it; {abandoned}"))
        elif path in pending and path.endswith(".json"):
            problems.append(Problem(where, f"built, but {run.dataset} does not name it yet: {_shard_command(run)}"))
    return problems


def _unnamed_records(run: Run, records: Sequence[ShardRecord]) -> list[ShardRecord]:
    """Built shards that dataset.json does not name. A marker that cannot be read counts as foreign."""
    known = {(record.shard, record.fingerprint) for record in records}
    unnamed = []
    for shard, fingerprint in dataset_index.done_shards(run):
        if (shard, fingerprint) not in known:
            with contextlib.suppress(DatasetError):
                unnamed.append(dataset_index.read_record(run, shard, fingerprint))
    return unnamed


def _pending_records(run: Run, unnamed: Sequence[ShardRecord]) -> list[ShardRecord]:
    """The unnamed shards that the next dataset.json may name: built after this one, with the run's present recipe."""
    if not unnamed:
        return []
    built = storage.last_change(run.shard_markers, {record.marker for record in unnamed})
    written = storage.last_change(run.shards, {DATASET_JSON})
    if built is not None and written is not None and built < written:
        return []
    try:
        recipe = recipe_of(run, frozen(run)).id
    except UserError:  # a dataset without its run: nothing will be built
        return []
    return [record for record in unnamed if record.recipe == recipe]


def _check_views(run: Run, content: dict[str, Any]) -> list[Problem]:
    what = f"missing, or not of the dataset that {run.dataset} describes: {_shard_command(run)}"
    return [Problem(run.dataset_file(name), what) for name in stale_views(run, Description.of(content))]


def _check_markers(run: Run, records: Sequence[ShardRecord]) -> list[Problem]:
    done, problems = set(dataset_index.done_shards(run)), []
    for record in records:
        where = dataset_index.marker(run, record.shard, record.fingerprint)
        if (record.shard, record.fingerprint) in done:
            problems += _check_marker(run, where, record)
        else:
            what = f"is missing, although {run.dataset} names the shard: {_shard_command(run)}"
            problems.append(Problem(where, what))
    return problems


def _check_marker(run: Run, where: str, record: ShardRecord) -> list[Problem]:
    try:
        marker = dataset_index.read_record(run, record.shard, record.fingerprint)
    except DatasetError:
        return [Problem(where, f"damaged: remove it and {_shard_command(run)}")]
    if marker != record:
        return [Problem(where, f"differs from the entry in {run.dataset}: remove it and {_shard_command(run)}")]
    return []


def _check_dropped_list(run: Run, record: ShardRecord) -> list[Problem]:
    """The list of what was left out of a shard: does it exist, and does it agree with the counts of the marker?"""
    if record.dropped_list is None:
        return []
    where = run.quarantine(record.dropped_list)
    try:
        content = storage.read_bytes(where)
    except FileNotFoundError:
        return [Problem(where, f"missing. {_rebuild(run, record)}")]
    try:
        rows = artifacts.parse_parquet(content, where, f"Remove it. {_rebuild(run, record)}", ["what", "reason"])
    except UserError as error:
        return [Problem(where, str(error).removeprefix(f"{where}: "))]
    counts_by_kind = {SAMPLE: record.dropped} | record.dropped_texts
    counts = {(what, reason): n for what, reasons in counts_by_kind.items() for reason, n in reasons.items()}
    if Counter((row["what"], row["reason"]) for row in rows.to_pylist()) == Counter(counts):
        return []
    return [Problem(where, f"differs from the counts of the marker. {_rebuild(run, record)}")]


def _check_file(run: Run, record: ShardRecord, file: FileRecord, owners: dict[str, str]) -> list[Problem]:
    """Bytes and sha256 of a file. `owners`: the names of all files by sha256, to recognize swapped files."""
    where = run.dataset_file(file.name)
    try:
        digest = digest_of(where)
    except FileNotFoundError:
        return [Problem(where, f"missing. {_rebuild(run, record)}")]
    if digest == file.digest:
        return []
    if digest.sha256 in owners:
        what = f"has the content of {owners[digest.sha256]}"
    elif digest.bytes != file.bytes:
        what = f"damaged: it has {digest.bytes} bytes, not {file.bytes}"
    else:
        what = f"damaged: its sha256 is {digest.sha256}, not {file.sha256}"
    return [Problem(where, f"{what}. {_rebuild(run, record)}")]


def _check_samples(
    run: Run, record: ShardRecord, output: ShardFile, content: dict[str, Any], uids: ExternalBuckets
) -> list[Problem]:
    """An undamaged tar and Parquet file: do they have the same samples, complete and as counted?

    Adds the uids of the Parquet file to `uids`.
    """
    table = artifacts.read_parquet(output.parquet_url, f"{_rebuild(run, record)}.")
    if not table.schema.equals(schema.dataset_of(content)):
        names = ", ".join(table.schema.names)
        return [Problem(output.parquet_url, f"has other columns than {run.dataset} says: {names}")]
    rows = list(zip(table["key"].to_pylist(), table["uid"].to_pylist(), strict=True))
    _add_uids(uids, table["uid"], record.shard)
    problems = _compare_tar(run, record, output, rows)
    if len(rows) != output.samples:
        problems.append(Problem(output.parquet_url, f"has {len(rows)} rows, but {run.dataset} says {output.samples}"))
    validation = content["rules"]["validation"]
    if strayed := [uid for _, uid in rows if split_of(uid, validation) != output.split]:
        what = f"has {len(strayed)} samples of the other split, for example uid {strayed[0]}"
        problems.append(Problem(output.tar_url, what))
    return problems


def _compare_tar(run: Run, record: ShardRecord, output: ShardFile, rows: list[tuple[str, str]]) -> list[Problem]:
    """The samples of a tar against `rows`: key and uid of each row of its Parquet file, in order."""
    problems, samples, remedy = [], [], f"{_rebuild(run, record)}."
    for sample in tar_reader.iter_samples(output.tar_url, remedy):
        member = artifacts.parse_json(sample.members.get("json", b"{}"), output.tar_url, remedy, artifacts.JsonObject)
        samples.append((sample.key, member.get("uid", "")))
        if sample.members.keys() != schema.EXTENSIONS:
            members = ", ".join(sorted(sample.members))
            problems.append(Problem(output.tar_url, f"sample {sample.key} has the members {members}"))
    if samples != rows:
        different = sorted(set(samples) ^ set(rows))
        example = f", for example {different[0][0]} (uid {different[0][1]})" if different else " in another order"
        problems.append(Problem(output.tar_url, f"has other samples than {output.parquet_url}{example}"))
    return problems


def _add_uids(uids: ExternalBuckets, column: pa.ChunkedArray, shard: int) -> None:
    order = np.array([int(uid[:16], 16) for uid in column.to_pylist()], dtype=np.uint64)
    shards = pa.array(np.full(len(order), shard, dtype=np.int32))
    uids.add(pa.Table.from_arrays([pa.array(order), column, shards], schema=_UIDS))


def _check_duplicates(run: Run, uids: ExternalBuckets, records: Sequence[ShardRecord]) -> list[Problem]:
    """Uids that occur more than once in the dataset."""
    tars = {record.shard: ", ".join(output.tar.name for output in record.outputs) for record in records}
    uids.flush()
    problems = []
    for bucket in uids:
        counts = bucket.group_by("uid").aggregate([("shard", "count"), ("shard", "min"), ("shard", "max")])
        for row in counts.filter(pc.field("shard_count") > 1).to_pylist():
            first, last = (tars[row[f"shard_{which}"]] for which in ("min", "max"))
            what = f"uid {row['uid']} occurs {row['shard_count']} times, in {first} and {last}"
            problems.append(Problem(run.shards, what))
    return problems
