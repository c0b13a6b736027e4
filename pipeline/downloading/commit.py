"""One shard from its list to its commit, as one Ray task runs it.

An attempt uploads its tar and its Parquet under names of its own, and creates the marker that names them last,
exclusively: of two attempts at one shard the first one counts, and the other removes what it has uploaded.
"""

import io
import json
import re
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.schema import SUCCESS
from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.downloading import failures as reasons
from lotlip_data.pipeline.downloading.img2dataset_adapter import FetchedShard, fetch
from lotlip_data.pipeline.downloading.reader import fetched_rows

QUARANTINE = pa.schema([(name, pa.string()) for name in ("key", "uid", "url", "reason", "detail")])
"""Columns of quarantine/images/NNNNN.parquet: the rows of a committed shard that have no image."""

_FILES_OF_AN_ATTEMPT = 2
_ATTEMPT_FILE = re.compile(r"(\d{5,})-[0-9a-f]+\.(?:tar|parquet)")


@dataclass(frozen=True)
class DownloadTask:
    """What a task needs to know. It is pickled into the task."""

    run: Run
    shard: int
    samples_per_shard: int
    settings: DownloadSettings = field(repr=False)
    accept: bool = False
    """Whether the shard is done even where nothing comes."""


def fetch_and_commit(work: DownloadTask) -> dict[str, Any] | dict[str, int]:
    """Fetch one shard and commit it, and return its marker.

    Where nothing came, for reasons that can pass (the server or the network is down), and that is not accepted, nothing
    is committed and the answer is the failures by reason alone, so that the next start tries again.
    """
    run, shard = work.run, work.shard
    url = run.list_shard(shard)
    remedy = f"Remove {url} and {run.plan}; `lotlip-data download` makes both again from the same lists."
    rows = artifacts.read_parquet(url, remedy)
    with scratch_folder("download") as folder:
        fetched = fetch(rows, shard, work.samples_per_shard, work.settings, folder)
        if fetched.can_pass and not work.accept:
            return {reason: count for reason, count in fetched.stats["status_dict"].items() if reason != SUCCESS}
        commit(run, shard, fetched)
    marker = ledger.read_image_stats(run, shard)
    complete(run, shard, marker)
    return marker


def complete(run: Run, shard: int, marker: Mapping[str, Any], retried: Collection[str] = ()) -> None:
    """What follows a commit: its quarantine, and its line in the ledger. Again gives the same."""
    quarantine(run, shard, marker, retried)
    failed = marker["count"] - marker["successes"]
    ended = int(marker.get("end_time", 0))
    started = int(marker.get("start_time", ended))
    ledger.record(run.image_ledger, shard, ledger.WorkRecord(marker["count"], failed, 0, started, ended))


def commit(run: Run, shard: int, fetched: FetchedShard) -> bool:
    """Make `fetched` the shard's result, unless it has one already. Whether it did. Its files are given away."""
    attempt = f"{shard_name(shard)}-{uuid.uuid4().hex[:12]}"
    marker = fetched.stats | {"tar": f"{attempt}.tar", "parquet": f"{attempt}.parquet"}
    ours = [storage.join(run.images, marker["tar"]), storage.join(run.images, marker["parquet"])]
    for url, local in zip(ours, (fetched.tar, fetched.parquet), strict=True):
        storage.create_from_file(url, str(local), move=True)
    if storage.create(run.image_stats(shard), json.dumps(marker, indent=2).encode()):
        return True
    for url in ours:
        storage.remove(url)
    return False


def quarantine(run: Run, shard: int, marker: Mapping[str, Any], retried: Collection[str] = ()) -> None:
    """Write the rows without an image beside the run's other failures, unless they are there.

    Rows that failed for one of the reasons `retried` belong to another shard by now.
    """
    if marker["successes"] < marker["count"]:
        failed = failed_rows(run, shard, marker, ["key", "uid", "url"])
        storage.create(run.quarantine("images", f"{shard_name(shard)}.parquet"), quarantined(failed, retried))


def quarantined(failed: pa.Table, retried: Collection[str]) -> bytes:
    """The quarantine's Parquet of some `failed_rows`, without those of the reasons `retried`."""
    if retried:
        failed = failed.filter(pc.invert(pc.is_in(failed["reason"], pa.array(sorted(retried), pa.string()))))
    stream = io.BytesIO()
    pq.write_table(failed.select(QUARANTINE.names).cast(QUARANTINE), stream)
    return stream.getvalue()


def failed_rows(run: Run, shard: int, marker: Mapping[str, Any], columns: list[str]) -> pa.Table:
    """The rows of a committed shard that have no image: `columns` of `schema.IMAGES`, then `reason` and `detail`."""
    table = fetched_rows(run, shard, marker, [*columns, "status", "error_message"])
    failed = table.filter(pc.not_equal(table["status"], SUCCESS))
    split = [reasons.split(message) for message in failed["error_message"].to_pylist()]
    failed = failed.select(columns)
    for name, values in (("reason", [reason for reason, _ in split]), ("detail", [text for _, text in split])):
        failed = failed.append_column(name, pa.array(values, pa.string()))
    return failed


def remove_orphans(run: Run, committed: Collection[int]) -> None:
    """Remove what attempts at `committed` shards left that were killed or came second."""
    found = filter(None, map(_ATTEMPT_FILE.fullmatch, storage.list_names(run.images)))
    for shard, matches in groupby(found, key=lambda match: int(match[1])):  # names come in order
        names = [match[0] for match in matches]
        if shard in committed and len(names) > _FILES_OF_AN_ATTEMPT:
            marker = ledger.read_image_stats(run, shard)
            for name in names:
                if name not in (marker["tar"], marker["parquet"]):
                    storage.remove(storage.join(run.images, name))
