"""One shard from its URL list, or from its container of existing images, to its commit, as one Ray task.

An attempt uploads its tar and its Parquet under unique names. Last, it creates the marker that names them, exclusively.
Of two attempts at one shard the first wins; the other removes its files.
"""

import pathlib
import re
import uuid
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.digests import digest_of_file
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import SUCCESS
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import ImageMarker
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.earlier_captions import Images, remove_captions_of_others
from lotlip_data.pipeline.downloading.images.isolation import Suspects
from lotlip_data.pipeline.downloading.img2dataset_adapter import FetchedShard, fetch
from lotlip_data.pipeline.downloading.reader import fetched_rows
from lotlip_data.pipeline.downloading.scan import scan, without_images
from lotlip_data.pipeline.downloading.suspects import ShardSuspects
from lotlip_data.pipeline.existing_images.partition import read_container_shard

QUARANTINE = pa.schema(
    [(name, pa.string()) for name in ("key", "uid", "url", "container", "member", "reason", "detail")]
)
"""Columns of quarantine/images/NNNNN.parquet: the rows of a committed shard without an image."""

_ATTEMPT_FILE = re.compile(r"(\d{5,})-[0-9a-f]+\.(?:tar|parquet)")


@dataclass(frozen=True)
class DownloadTask:
    """The input of one download task. Ray pickles it."""

    run: Run
    shard: int
    samples_per_shard: int
    settings: DownloadSettings = field(repr=False)
    accept: bool = False
    """Whether to commit the shard even if none of its images downloads, or its container is damaged."""
    sources: tuple[Source, ...] | None = field(default=None, repr=False)
    """The image sources of the manifest, if the shard is a container of one of them; None if it is a list of URLs."""


def fetch_and_commit(task: DownloadTask) -> ImageMarker | dict[str, int]:
    """Download one shard, or scan its container, commit it, and return its marker.

    If no image downloads and a failure is transient (the server or the network is down), nothing is committed unless
    `task.accept` is set. The result is then the number of failures per reason, and the next run retries the shard.
    """
    run, shard = task.run, task.shard
    suspects = ShardSuspects(run, shard)
    with scratch_folder("download") as folder:
        fetched = _fetch(task, folder, suspects) if task.sources is None else _scan(task, folder, suspects)
        if fetched.is_retriable and not task.accept:
            return {reason: count for reason, count in fetched.stats["status_dict"].items() if reason != SUCCESS}
        commit(run, shard, fetched)
    suspects.clear()
    marker = ledger.read_image_stats(run, shard)
    finish_commit(run, shard, marker)
    return marker


def _fetch(task: DownloadTask, folder: pathlib.Path, suspects: Suspects) -> FetchedShard:
    rows = artifacts.read_parquet(task.run.list_shard(task.shard), list_remedy(task.run, task.shard))
    return fetch(rows, task.shard, task.samples_per_shard, task.settings, folder, suspects)


def _scan(task: DownloadTask, folder: pathlib.Path, suspects: Suspects) -> FetchedShard:
    listed = read_container_shard(task.run, task.shard)
    source = next(source for source in task.sources or () if source.name == listed.source)
    try:
        return scan(listed, source, task.shard, task.settings, folder, suspects)
    except UserError as error:
        if not task.accept:
            raise
        return without_images(listed, task.shard, error, folder)


def list_remedy(run: Run, shard: int) -> str:
    """The remedy for a damaged list shard."""
    return f"Remove {run.list_shard(shard)} and {run.plan}; `lotlip-data download` rebuilds both from the same lists."


def finish_commit(run: Run, shard: int, marker: ImageMarker, retried: Collection[str] = ()) -> None:
    """Write the quarantine and the ledger entry of a committed shard. Idempotent."""
    write_quarantine(run, shard, marker, retried)
    failed = marker["count"] - marker["successes"]
    end = int(marker.get("end_time", 0))
    start = int(marker.get("start_time", end))
    ledger.record(run.image_ledger, shard, ledger.WorkRecord(marker["count"], failed, 0, start, end))


def commit(run: Run, shard: int, fetched: FetchedShard) -> bool:
    """Make `fetched` the shard's result, unless it has one; moves its files. Returns whether this attempt won."""
    attempt = f"{shard_name(shard)}-{uuid.uuid4().hex[:12]}"
    files = {"tar": fetched.tar, "parquet": fetched.parquet} if fetched.tar else {"parquet": fetched.parquet}
    names = {kind: f"{attempt}.{kind}" for kind in files}
    digests = {kind: asdict(digest_of_file(file)) for kind, file in files.items()}
    images = _images(fetched.parquet)
    urls = [run.image_file(name) for name in names.values()]
    for url, local in zip(urls, files.values(), strict=True):
        storage.create_from_file(url, str(local), move=True)
    marker = fetched.stats | names | {"digests": digests}
    if not storage.exists(run.image_stats(shard)):  # a marker that was removed has left its quarantine and captions
        storage.remove(run.quarantine("images", f"{shard_name(shard)}.parquet"))
        images_file = names.get("tar", names["parquet"])
        if captioners := remove_captions_of_others(run, shard, images, images_file):
            marker["removed_captions"] = captioners
    if storage.create(run.image_stats(shard), artifacts.encode_json(marker, indent=2)):
        return True
    for url in urls:
        storage.remove(url)
    return False


def _images(parquet: pathlib.Path) -> Images:
    rows = pq.read_table(parquet, columns=["uid", "sha256", "key"], filters=[("status", "=", SUCCESS)])
    uids, hashes, keys = (column.to_pylist() for column in rows.columns)
    return dict(zip(zip(uids, hashes, strict=True), keys, strict=True))


def write_quarantine(run: Run, shard: int, marker: ImageMarker, retried: Collection[str] = ()) -> None:
    """Write the rows without an image to the quarantine, unless they are there already.

    Rows with a reason in `retried` are left out: another shard retries them.
    """
    if marker["successes"] < marker["count"]:
        failed = failed_rows(run, shard, marker, ["key", "uid", "url", "container", "member"])
        storage.create(run.quarantine("images", f"{shard_name(shard)}.parquet"), quarantine_parquet(failed, retried))


def quarantine_parquet(failed: pa.Table, retried: Collection[str]) -> bytes:
    """Encode `failed_rows` as a quarantine Parquet, without the rows with a reason in `retried`."""
    if retried:
        failed = failed.filter(pc.invert(pc.is_in(failed["reason"], pa.array(sorted(retried), pa.string()))))
    return artifacts.encode_parquet(failed.select(QUARANTINE.names).cast(QUARANTINE))


def failed_rows(run: Run, shard: int, marker: ImageMarker, columns: list[str]) -> pa.Table:
    """The rows of a committed shard without an image: `columns` of `schema.IMAGES`, then `reason` and `detail`."""
    table = fetched_rows(run, shard, marker, [*columns, "status", "error_message"])
    failed = table.filter(pc.not_equal(table["status"], SUCCESS))
    causes = [failures.split_message(message) for message in failed["error_message"].to_pylist()]
    failed = failed.select(columns)
    for name, values in (("reason", [reason for reason, _ in causes]), ("detail", [text for _, text in causes])):
        failed = failed.append_column(name, pa.array(values, pa.string()))
    return failed


def remove_orphans(run: Run, committed: Collection[int]) -> None:
    """Remove the files that killed and second attempts at `committed` shards left."""
    attempt_files = filter(None, map(_ATTEMPT_FILE.fullmatch, storage.list_names(run.images)))
    for shard, matches in groupby(attempt_files, key=lambda match: int(match[1])):  # names are sorted
        names = [match[0] for match in matches]
        if shard in committed and len({name.partition(".")[0] for name in names}) > 1:
            marker = ledger.read_image_stats(run, shard)
            for name in names:
                if name not in (marker.get("tar"), marker["parquet"]):
                    storage.remove(run.image_file(name))
