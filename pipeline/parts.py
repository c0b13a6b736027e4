"""The rows of a unit that is under way, saved every few hundred: what a part holds is not captioned again."""

import asyncio
import io
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.schema import CAPTIONS
from lotlip_data.pipeline import parquet_object
from lotlip_data.pipeline.ledger import Tally
from lotlip_data.pipeline.meter import Spent

Row = dict[str, Any]


def parquet(rows: list[Row], captioner_id: str | None = None) -> bytes:
    """Rows of CAPTIONS as one Parquet file; `captioner_id` goes into its metadata."""
    metadata = {"captioner": captioner_id} if captioner_id else {}
    table = pa.Table.from_pylist(rows, schema=CAPTIONS.with_metadata(metadata))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_parts(folder: str) -> tuple[list[Row], float, Spent]:
    """One row for each image, when the first was begun (infinity without parts), in Unix time, and the time spent.

    Of two attempts' rows for one image, the one in the part that sorts first counts. Raises UserError for a part that
    is damaged.
    """
    rows: dict[str, Row] = {}
    begun, spent = float("inf"), Spent()
    for name in storage.list_names(folder):
        if not name.endswith(".parquet"):
            continue
        if counted := Tally.named(name):
            begun = min(begun, counted.started)
            spent += Spent(counted.spent / 1000, counted.gpu / 1000)
        part = storage.join(folder, name)
        try:
            content = storage.read_bytes(part)
        except FileNotFoundError:
            continue  # another driver has committed the shard
        remedy = "Remove it; its images are captioned again."
        for row in parquet_object.parse(content, part, remedy).to_pylist():
            rows.setdefault(row["uid"], row)
    return list(rows.values()), begun, spent


class Parts:
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
        spent: Callable[[], Spent],
    ) -> None:
        self.rows: list[Row] = []
        """All of this attempt's rows, saved or not."""
        self._folder, self._attempt, self._saved, self._spent = folder, attempt, saved, spent
        self._size, self._slack = size, slack
        self._begun = 0
        self._number = 0
        self._started, self._told = time.time(), Spent()
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
        counted = Tally(len(fresh), failed, tokens, int(self._started), round(time.time()), *took)
        self._started, self._told = time.time(), spent
        name = f"{self._number:05d}-{self._attempt}-{counted.name}.parquet"
        self._number += 1
        await asyncio.to_thread(lambda: storage.create(storage.join(self._folder, name), parquet(fresh)))
        self._saved([row["uid"] for row in fresh])
