"""The rows of a unit that is under way, saved every few hundred: what a part holds is not captioned again.

What a committed unit comes to, and what follows the commit: its quarantine, its line in the ledger.
"""

import asyncio
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.schema import CAPTIONS
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.recaptioning.usage import Usage

Row = dict[str, Any]


def parquet(rows: list[Row], captioner_id: str | None = None) -> bytes:
    """Rows of CAPTIONS as one Parquet file; `captioner_id` goes into its metadata."""
    metadata = {"captioner": captioner_id} if captioner_id else {}
    table = pa.Table.from_pylist(rows, schema=CAPTIONS.with_metadata(metadata))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_partial(folder: str) -> tuple[list[Row], float, Usage]:
    """One row for each image, when the first was begun (infinity without parts), in Unix time, and the time spent.

    Of two attempts' rows for one image, the one in the part that sorts first counts. Raises UserError for a part that
    is damaged.
    """
    rows: dict[str, Row] = {}
    begun, spent = float("inf"), Usage()
    for name in storage.list_names(folder):
        if not name.endswith(".parquet"):
            continue
        if counted := WorkRecord.named(name):
            begun = min(begun, counted.started)
            spent += Usage(counted.spent / 1000, counted.gpu / 1000)
        part = storage.join(folder, name)
        try:
            content = storage.read_bytes(part)
        except FileNotFoundError:
            continue  # another driver has committed the shard
        remedy = "Remove it; its images are captioned again."
        for row in artifacts.parse_parquet(content, part, remedy).to_pylist():
            rows.setdefault(row["uid"], row)
    return list(rows.values()), begun, spent


class PartialResults:
    """One attempt's parts. Rows are written in the background, one part at a time, while captioning goes on.

    size: rows of a part. slack: rows that may come in while a part is being written; more have to wait.
    saved: hears of the uids of each part once it is safe. spent: time of the actor so far, of this attempt.
    """

    def __init__(
        self,
        folder: str,
        attempt: str,
        size: int,
        slack: int,
        saved: Callable[[list[str]], None],
        spent: Callable[[], Usage],
    ) -> None:
        self.rows: list[Row] = []
        """All of this attempt's rows, saved or not."""
        self._folder, self._attempt, self._saved, self._spent = folder, attempt, saved, spent
        self._size, self._slack = size, slack
        self._begun = 0
        self._number = 0
        self._started, self._told = time.time(), Usage()
        self._writing: asyncio.Task[None] | None = None

    @property
    def unsaved(self) -> int:
        return len(self.rows) - self._begun

    async def add(self, row: Row) -> None:
        """Takes a row. Raises what the writing of an earlier part raised."""
        self.rows.append(row)
        if self._writing and (self._writing.done() or self.unsaved >= self._slack):
            await self._finish_write()
        if self._writing is None and self.unsaved >= self._size:
            self._writing = asyncio.create_task(self._write())

    async def save(self) -> None:
        """Returns when every row is safe."""
        await self._finish_write()
        if self.unsaved:
            await self._write()

    async def close(self) -> None:
        """Waits for the part that is being written; what is in no part yet stays in `rows`."""
        await self._finish_write()

    async def _finish_write(self) -> None:
        if task := self._writing:
            await asyncio.wait([task])
            if self._writing is task:  # the first to see it raises what it raised
                self._writing = None
                task.result()

    async def _write(self) -> None:
        fresh = self.rows[self._begun :]
        self._begun = len(self.rows)
        failed = sum(row["error"] is not None for row in fresh)
        tokens = sum(row["tokens"] or 0 for row in fresh)
        spent = self._spent()
        took = (spent - self._told).milliseconds
        counted = WorkRecord(len(fresh), failed, tokens, int(self._started), round(time.time()), *took)
        self._started, self._told = time.time(), spent
        name = f"{self._number:05d}-{self._attempt}-{counted.name}.parquet"
        self._number += 1
        await asyncio.to_thread(lambda: storage.create(storage.join(self._folder, name), parquet(fresh)))
        self._saved([row["uid"] for row in fresh])


NO_TIME = Usage()


@dataclass(frozen=True)
class UnitResult:
    """A unit's `rows`, of them `rejected` with a reason; `captioned` by this call; `won`: its commit was the first."""

    shard: int
    rows: int
    captioned: int
    rejected: int
    won: bool


def finish(
    run: Run, captioner: str, shard: int, started: int | None = None, spent: Usage = NO_TIME
) -> ledger.WorkRecord:
    """After the commit of a shard's captions, whoever made it. Doing it again is harmless.

    started: of the work, in Unix time; None where it is not known. spent: NO_TIME where no actor worked or nobody
    knows. Returns what the shard holds.
    """
    url = run.caption_shard(captioner, shard)
    table = artifacts.read_parquet(url, f"Remove {url}; its images are captioned again.")
    rejected = table.filter(pc.is_valid(table["error"]))
    listed = run.quarantine("captions", captioner, f"{shard_name(shard)}.parquet")
    if rejected.num_rows:
        listing = pa.BufferOutputStream()
        pq.write_table(rejected, listing, compression="zstd")
        storage.replace(listed, listing.getvalue().to_pybytes())
    else:
        storage.remove(listed)  # of captions that were removed since
    times = (0, 0) if started is None else (started, round(time.time()))
    tokens = pc.sum(table["tokens"]).as_py() or 0
    counted = ledger.WorkRecord(table.num_rows, rejected.num_rows, tokens, *times, *spent.milliseconds)
    ledger.record(run.caption_ledger(captioner), shard, counted)
    storage.remove(run.caption_parts(captioner, shard))
    return counted


def complete(run: Run, captioner: str, done: tuple[int, ...]) -> None:
    """Do what follows a commit for shards whose process was killed right after it.

    Of shards whose captions have been removed it is undone, so that they are counted once when they come again.
    """
    ledger.forget_removed(run, captioner)
    recorded = ledger.recorded(run.caption_ledger(captioner))
    for shard in done:
        if shard not in recorded:
            finish(run, captioner, shard)


class RecaptionError(UserError):
    """The stage cannot start; the message says where, why and what to do."""


def claim(run: Run, captioner: CaptionerConfig) -> None:
    """Settle what the captioner's folder holds, once: captions of different settings never mix.

    Raises RecaptionError, naming the settings that differ, where it was settled otherwise.
    """
    path = run.captioner_settings(captioner.name)
    settings = captioner.to_dict()
    content = json.dumps({"id": captioner.id, **settings}, indent=1).encode()
    if not storage.exists(path) and storage.create(path, content):
        return  # looked at first: with nothing to do, nothing has to be writable
    held = ledger.captioner_settings(run, captioner.name)
    if held["id"] != captioner.id:
        changed = sorted(name for name, value in settings.items() if held.get(name) != value)
        raise RecaptionError(
            f"{run.captioner(captioner.name)} holds captions of {held['id']}, but the settings now make "
            f"{captioner.id} (changed: {', '.join(changed)}). Give the captioner another name, or use the settings "
            f"in {path}."
        )
