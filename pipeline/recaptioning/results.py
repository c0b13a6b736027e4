"""The rows of a shard: saved in parts while the shard is captioned, then committed, counted and quarantined."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.captioners.quality_flags import empty
from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import CAPTIONS
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.recaptioning.usage import Usage

Row = dict[str, Any]
"""One row of `schema.CAPTIONS`."""

NO_USAGE = Usage()


MIN_JUDGED_IMAGES = 32
"""A shard with fewer images is judged as if it had this many, the further ones captioned."""

MAX_REASON_CHARACTERS = 300

NO_WORD = "a caption without a word, as damaged weights or too low a precision give"


class RecaptionError(UserError):
    """The stage cannot start. The message says where, why and how to fix it."""


@dataclass(frozen=True)
class UnitResult:
    """What one call did for a text of a shard: `rows` in total, `captioned` by this call, `rejected` with a reason.

    `won`: whether this call made the commit. `tokens`: of all captions of the shard.
    """

    captioner: str
    shard: int
    rows: int
    captioned: int
    rejected: int
    won: bool
    tokens: int = 0


def is_lost(row: Row) -> bool:
    """Whether an image has no caption, or one without a word, as a model with damaged weights gives to every image."""
    return row["error"] is not None or empty.__name__ in (row["flags"] or ())


def exceeds_rejections(rows: list[Row], max_rejected: float) -> bool:
    """Whether more than the share `max_rejected` of a shard's rows are rejections, or have captions without a word."""
    rejected = sum(map(is_lost, rows))
    return rejected > max_rejected * max(len(rows), MIN_JUDGED_IMAGES)


def rejections(rows: list[Row], max_rejected: float, shard: int) -> str:
    """Why a shard's rows must not be committed, with the commonest reason of its rejections; empty if they may.

    So many images are rejected that the captioner is at fault, not the images.
    """
    if not exceeds_rejections(rows, max_rejected):
        return ""
    reasons = Counter(row["error"] or NO_WORD for row in rows if is_lost(row))
    ((reason, count),) = reasons.most_common(1)
    return (
        f"shard {shard_name(shard)} is not committed: {reasons.total()} of its {len(rows)} images were rejected, "
        f"{count} of them with: {reason[:MAX_REASON_CHARACTERS]}. Fix the captioner and start again; the captions are "
        "kept, and the rejected images are tried again. If the images are at fault, allow a larger share with "
        "max_rejected in the captioner's pool."
    )


def encode_rows(rows: list[Row], **metadata: str) -> bytes:
    """Encode rows as a Parquet file with the columns `schema.CAPTIONS` and this metadata."""
    return artifacts.encode_parquet(pa.Table.from_pylist(rows, schema=CAPTIONS.with_metadata(metadata)))


def read_partial(folder: str, origin: Mapping[str, str]) -> tuple[list[Row], float, Usage]:
    """Read the parts of a shard that have this origin.

    Args:
        folder: The parts folder.
        origin: The `captioner`, with its model, and the `tar`. Parts of another one are ignored; parts of older
            releases name none.

    Returns:
        One row per image; when the first part was started, in Unix time (infinity without parts); the usage so far. If
        two attempts have a row for one image, a caption counts before a rejection, and then the part whose name sorts
        first.

    Raises:
        UserError: A part is damaged.
    """
    rows: dict[str, Row] = {}
    started_at, usage = float("inf"), Usage()
    for name in storage.list_names(folder):
        if not name.endswith(".parquet"):
            continue
        part = storage.join(folder, name)
        try:
            content = storage.read_bytes(part)
        except FileNotFoundError:
            continue  # another driver has committed the shard
        remedy = "Remove it; its images are captioned again."
        table = artifacts.parse_parquet(content, part, remedy)
        metadata = table.schema.metadata or {}
        if any(metadata.get(key.encode(), value.encode()) != value.encode() for key, value in origin.items()):
            continue
        if record := WorkRecord.named(name):
            started_at = min(started_at, record.started)
            usage += Usage(record.spent / 1000, record.gpu / 1000)
        for row in table.to_pylist():
            earlier = rows.get(row["uid"])
            if earlier is None or (earlier["error"] is not None and row["error"] is None):
                rows[row["uid"]] = row
    return list(rows.values()), started_at, usage


class PartialResults:
    """The parts of one attempt. Parts are written in the background, one at a time, while captioning continues.

    Args:
        folder: Where parts go.
        attempt: Unique name of the attempt.
        size: Rows per part.
        slack: Rows that may arrive while a part is being written; further rows wait.
        on_saved: Called with the uids of each part once the storage has it.
        usage: Returns the actor's time for this attempt so far.
        origin: What the rows are made from, recorded with each part: the `captioner`, with its model, and the `tar`.
    """

    def __init__(
        self,
        folder: str,
        attempt: str,
        size: int,
        slack: int,
        on_saved: Callable[[list[str]], None],
        usage: Callable[[], Usage],
        origin: Mapping[str, str],
    ) -> None:
        self.rows: list[Row] = []
        """All rows of this attempt, saved or not."""
        self._folder, self._attempt, self._on_saved, self._usage = folder, attempt, on_saved, usage
        self._origin = origin
        self._size, self._slack = size, slack
        self._written_rows = 0
        self._number = 0
        self._part_started_at, self._recorded_usage = time.time(), Usage()
        self._writing: asyncio.Task[None] | None = None

    @property
    def unsaved(self) -> int:
        """Number of rows that are in no part and not being written."""
        return len(self.rows) - self._written_rows

    async def add(self, row: Row) -> None:
        """Add a row. Raises what writing an earlier part raised."""
        self.rows.append(row)
        if self._writing and (self._writing.done() or self.unsaved >= self._slack):
            await self._finish_write()
        if self._writing is None and self.unsaved >= self._size:
            self._writing = asyncio.create_task(self._write())

    async def save(self) -> None:
        """Write all rows. Returns once the storage has them."""
        await self._finish_write()
        if self.unsaved:
            await self._write()

    async def close(self) -> None:
        """Wait for the part that is being written. Rows without a part stay in `rows`."""
        await self._finish_write()

    async def _finish_write(self) -> None:
        if task := self._writing:
            await asyncio.wait([task])
            if self._writing is task:  # the first caller to see it raises its error
                self._writing = None
                task.result()

    async def _write(self) -> None:
        new_rows = self.rows[self._written_rows :]
        self._written_rows = len(self.rows)
        failed = sum(row["error"] is not None for row in new_rows)
        tokens = sum(row["tokens"] or 0 for row in new_rows)
        usage = self._usage()
        duration = (usage - self._recorded_usage).milliseconds
        record = WorkRecord(len(new_rows), failed, tokens, int(self._part_started_at), round(time.time()), *duration)
        self._part_started_at, self._recorded_usage = time.time(), usage
        name = f"{self._number:05d}-{self._attempt}-{record.name}.parquet"
        self._number += 1
        part = storage.join(self._folder, name)
        await asyncio.to_thread(lambda: storage.create(part, encode_rows(new_rows, **self._origin)))
        self._on_saved([row["uid"] for row in new_rows])


def finish_commit(
    run: Run, captioner: str, shard: int, started_at: int | None = None, usage: Usage = NO_USAGE
) -> ledger.WorkRecord:
    """Write the quarantine and the ledger entry of a committed shard, and remove its parts. Idempotent.

    Args:
        run: The run.
        captioner: Name of the captioner.
        shard: The committed shard, whoever committed it.
        started_at: When the work started, in Unix time; None if unknown.
        usage: Actor and GPU time; NO_USAGE if no actor worked or it is unknown.

    Returns:
        What the shard holds.
    """
    url = run.caption_shard(captioner, shard)
    table = artifacts.read_parquet(url, f"Remove {url}; its images are captioned again.")
    rejected = table.filter(pc.is_valid(table["error"]))
    quarantine = run.quarantine("captions", captioner, f"{shard_name(shard)}.parquet")
    if rejected.num_rows:
        storage.replace(quarantine, artifacts.encode_parquet(rejected))
    else:
        storage.remove(quarantine)  # left by captions that a user has removed
    period = (0, 0) if started_at is None else (started_at, round(time.time()))
    tokens = pc.sum(table["tokens"]).as_py() or 0
    record = ledger.WorkRecord(table.num_rows, rejected.num_rows, tokens, *period, *usage.milliseconds)
    ledger.record(run.caption_ledger(captioner), shard, record)
    storage.remove(run.caption_parts(captioner, shard))
    return record


def finish_pending_commits(run: Run, captioner: str, committed: tuple[int, ...]) -> None:
    """Call `finish_commit` for shards whose process was killed right after the commit.

    Ledger entries of shards whose captions a user has removed are dropped, so that new captions are counted once.
    """
    ledger.forget_removed(run, captioner)
    recorded = ledger.recorded(run.caption_ledger(captioner))
    for shard in committed:
        if shard not in recorded:
            finish_commit(run, captioner, shard)
