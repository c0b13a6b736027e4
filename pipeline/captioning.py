"""One unit of recaptioning: every image of one shard, one captioner, one commit.

Plain asyncio over an engine; nothing here knows of Ray. Images are read ahead and decoded on threads, requests are
bounded by the engine's window, and results go to part files as they come, so that a killed unit costs at most one part.
"""

import asyncio
import contextlib
import io
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lotlip_data.captioners.base import CaptionerConfig, CaptionError, Engine
from lotlip_data.captioners.flags import flags_of
from lotlip_data.manifests import storage
from lotlip_data.manifests.layout import Run, shard_name
from lotlip_data.manifests.schema import CAPTIONS
from lotlip_data.pipeline.fetched import FetchedImage, fetched_images

PART_SIZE = 512
READ_AHEAD = 64

Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class UnitResult:
    """A unit's `rows`, of them `captioned` by this call, `rejected` with a reason; `won`: its commit was the first."""

    shard: int
    rows: int
    captioned: int
    rejected: int
    tokens: int
    won: bool


@dataclass
class Captioning:
    """An engine with the limits that its units share: the window of requests in flight and the decoding threads."""

    run: Run
    config: CaptionerConfig
    engine: Engine
    engine_name: str = ""
    """Recorded with each caption."""
    part_size: int = PART_SIZE
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "decode"))

    def __post_init__(self) -> None:
        self._window = asyncio.Semaphore(self.engine.window)

    async def unit(self, shard: int) -> UnitResult:
        """Caption what the parts of `shard` lack, then commit all of it. Two units may run at once on one engine."""
        loop = asyncio.get_running_loop()
        parts = Parts(self.run.caption_parts(self.config.name, shard), self.part_size)
        rows = await loop.run_in_executor(None, parts.read)
        known = {row["uid"] for row in rows}
        fresh: list[Row] = []
        images = _ahead((image for image in fetched_images(self.run, shard) if image.uid not in known), loop)
        async for row in self._captions(images):
            fresh.append(row)
            if full := parts.add(row):
                await loop.run_in_executor(None, parts.write, full)
        rows = sorted(rows + fresh, key=lambda row: row["key"])
        target = self.run.caption_shard(self.config.name, shard)
        won = await loop.run_in_executor(None, storage.create, target, _parquet(rows, self.config))
        rejected = [row for row in rows if row["error"] is not None]
        if won and rejected:
            listing = self.run.quarantine("captions", self.config.name, f"{shard_name(shard)}.parquet")
            await loop.run_in_executor(None, storage.replace, listing, _parquet(rejected, self.config))
        await loop.run_in_executor(None, storage.remove, parts.folder)
        return UnitResult(
            shard=shard,
            rows=len(rows),
            captioned=len(fresh),
            rejected=len(rejected),
            tokens=sum(row["tokens"] or 0 for row in fresh),
            won=won,
        )

    async def _captions(self, images: AsyncIterator[FetchedImage]) -> AsyncIterator[Row]:
        """One row for each image, in the order in which the engine finishes them."""
        running: set[asyncio.Task[Row]] = set()
        try:
            async for image in images:
                await self._window.acquire()
                running.add(asyncio.create_task(self._caption(image)))
                for task in [task for task in running if task.done()]:
                    running.discard(task)
                    yield task.result()
            while running:
                finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()

    async def _caption(self, fetched: FetchedImage) -> Row:
        """The caption of one image, or its reason for having none; the window was entered by the caller."""
        row: Row = {"key": fetched.key, "uid": fetched.uid, "sha256": fetched.sha256, "engine": self.engine_name}
        try:
            loop = asyncio.get_running_loop()
            image = await loop.run_in_executor(self.threads, _decode, fetched.image)
            caption = await self.engine.caption(image)
        except CaptionError as error:
            return row | {"text": None, "finish_reason": None, "tokens": None, "flags": [], "error": str(error)}
        finally:
            self._window.release()
        return row | {
            "text": caption.text,
            "finish_reason": caption.finish_reason,
            "tokens": caption.tokens,
            "flags": flags_of(caption, self.config),
            "error": None,
        }


def _decode(content: bytes) -> Image.Image:
    """RGB pixels. Raises CaptionError for bytes that are no readable image: its neighbours must not suffer."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CaptionError(f"the stored image cannot be decoded: {error}") from error


async def _ahead(items: Iterator[T], loop: asyncio.AbstractEventLoop) -> AsyncIterator[T]:
    """`items`, read on a thread of their own and at most READ_AHEAD ahead of their use."""
    with ThreadPoolExecutor(1, "read") as reader:
        batch = loop.run_in_executor(reader, _take, items)
        while True:
            ready, error = await batch
            if error is None and ready:
                batch = loop.run_in_executor(reader, _take, items)
            for item in ready:
                yield item
            if error is not None:
                raise error
            if not ready:
                return


def _take(items: Iterator[T]) -> tuple[list[T], Exception | None]:
    """The next few items, and the error that ended them: what was read before it is still used."""
    taken: list[T] = []
    try:
        for item in items:
            taken.append(item)
            if len(taken) == READ_AHEAD // 2:
                break
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        return taken, error
    return taken, None


class Parts:
    """The rows of a unit that is under way, in files of `part_size` rows; what they hold is not captioned again."""

    def __init__(self, folder: str, part_size: int) -> None:
        self.folder = folder
        self._part_size = part_size
        self._attempt = uuid.uuid4().hex[:8]
        self._written = 0
        self._buffer: list[Row] = []

    def read(self) -> list[Row]:
        """One row for each image; of two attempts' rows for one image, the one in the part that sorts first counts."""
        rows: dict[str, Row] = {}
        for name in storage.list_names(self.folder):
            with contextlib.suppress(FileNotFoundError), storage.open_read(storage.join(self.folder, name)) as stream:
                for row in pq.read_table(stream).to_pylist():
                    rows.setdefault(row["uid"], row)
        return list(rows.values())

    def add(self, row: Row) -> list[Row] | None:
        """Takes a row; returns the rows of a part when it is full."""
        self._buffer.append(row)
        if len(self._buffer) < self._part_size:
            return None
        full, self._buffer = self._buffer, []
        return full

    def write(self, rows: list[Row]) -> None:
        storage.create(storage.join(self.folder, f"{self._written:05d}-{self._attempt}.parquet"), _parquet(rows, None))
        self._written += 1


def _parquet(rows: list[Row], config: CaptionerConfig | None) -> bytes:
    metadata = {"captioner": config.id} if config else {}
    table = pa.Table.from_pylist(rows, schema=CAPTIONS.with_metadata(metadata))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
