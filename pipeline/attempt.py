"""One attempt at a unit: what its parts lack goes to the engine, suspects of earlier deaths first, then the commit."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.layout import shard_name
from lotlip_data.pipeline.ahead import batched, read_ahead
from lotlip_data.pipeline.caption_commit import UnitResult, finish
from lotlip_data.pipeline.fetched import FetchedImage, fetched_images
from lotlip_data.pipeline.meter import Spent
from lotlip_data.pipeline.parts import Parts, Row, parquet, read_parts
from lotlip_data.pipeline.suspects import FEW, MAX_GUILTY, Trail, suspicion

if TYPE_CHECKING:
    from lotlip_data.pipeline.captioning import Captioning, Prepared

BATCH = 32
"""Images read at a time, and as many read ahead."""


class TooManyDeaths(UserError):
    """More images of a unit killed the engine than bad images would."""


class Attempt:
    """One attempt at a unit."""

    def __init__(self, captioning: "Captioning", shard: int) -> None:
        self._all, self.shard = captioning, shard
        self._run, self._name = captioning.run, captioning.config.name
        self._folder = self._run.caption_parts(self._name, shard)
        self._target = self._run.caption_shard(self._name, shard)
        attempt = uuid.uuid4().hex[:8]
        self._trail = Trail(self._folder, attempt)
        self._started, self._spent_before = time.time(), Spent()
        # A kill costs the part that is being written, the slack that comes in meanwhile, and a window that waits then:
        # part_size together, unless the window alone is more.
        size = max(1, captioning.part_size // 4)
        slack = max(1, captioning.part_size - size - captioning.window.size)
        self.share = captioning.meter.join()
        self._parts = Parts(self._folder, attempt, size, slack, self._trail.settle, self._spent)
        self._running: set[asyncio.Task[None]] = set()
        self.task = asyncio.create_task(self.caption())

    async def caption(self) -> UnitResult:
        if await asyncio.to_thread(storage.exists, self._target):  # by another driver, or before an answer was lost
            return await self._finish(won=False)
        saved, begun, self._spent_before = await asyncio.to_thread(read_parts, self._folder)
        self._started = min(self._started, begun)
        settled = {row["uid"] for row in saved}
        suspected = await asyncio.to_thread(suspicion, self._folder, settled)
        try:
            async with self._all.turn:
                await self._refuse(suspected.guilty)
                await self._try(suspected.alone, 1)
                await self._try(suspected.few, FEW)
                settled |= suspected.few | suspected.alone | suspected.guilty.keys()
                await self._submit_all(settled | suspected.last)
                await self._try(suspected.last, 1)
            while self._running:
                await self._settle_some()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        await self._parts.close()
        return await self._commit(saved)

    async def save(self, cause: str) -> None:
        with contextlib.suppress(OSError):
            await self._parts.save()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._trail.blame, cause)

    async def leave(self) -> None:
        with contextlib.suppress(OSError):
            await self._parts.save()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._trail.withdraw)

    async def _submit_all(self, settled: set[str]) -> None:
        def batches() -> Iterator[list["Prepared"]]:
            for batch in batched(self._images(lambda uid: uid not in settled), BATCH):
                self._trail.expect(image.uid for image in batch)  # before a decoder that may crash sees them
                yield self._all.prepared(batch)

        async with contextlib.aclosing(read_ahead(batches())) as ahead:
            async for batch in ahead:
                for image in batch:
                    await self._all.window.enter()
                    self._running.add(asyncio.create_task(self._caption_one(image, self._all.window.leave)))
                    if any(task.done() for task in self._running):
                        await self._settle_some()

    async def _settle_some(self) -> None:
        """Waits for captions that are under way, and raises what one of them raised."""
        done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        errors = [task.exception() for task in done]  # all are looked at: asyncio complains of those that are not
        if error := next(filter(None, errors), None):
            raise error

    async def _caption_one(self, image: "Prepared", release: Callable[[], None] = lambda: None) -> None:
        try:
            await self._take(await self._all.row_of(image))
        finally:
            release()

    async def _take(self, row: Row) -> None:
        self._all.heard(row)
        await self._parts.add(row)

    async def _refuse(self, guilty: dict[str, str]) -> None:
        """These are not tried again, each for its reason."""
        if len(guilty) > MAX_GUILTY:
            raise TooManyDeaths(
                f"{len(guilty)} images of shard {shard_name(self.shard)} have ended the engine's process, "
                "each alone; that looks like the engine's fault. Check its memory and its log, then start again; to "
                f"have all of its images tried again, remove {self._folder}."
            )
        if guilty:
            async for few in read_ahead(batched(self._images(guilty.__contains__), FEW)):
                for image in few:
                    await self._take(self._all.refusal(image, guilty[image.uid]))

    async def _try(self, suspects: frozenset[str], size: int) -> None:
        """These go to the engine `size` at a time with nothing beside them, and are saved before the next."""
        if not suspects:
            return
        while self._running:
            await self._settle_some()
        await self._all.window.empty()
        await self._parts.save()  # so that only these are named
        async for few in read_ahead(batched(self._images(suspects.__contains__), size)):
            await asyncio.to_thread(self._trail.expect, [image.uid for image in few])
            await asyncio.gather(*map(self._caption_one, await asyncio.to_thread(self._all.prepared, few)))
            await self._parts.save()

    def _images(self, wanted: Callable[[str], bool]) -> Iterator[FetchedImage]:
        return (image for image in fetched_images(self._run, self.shard) if wanted(image.uid))

    async def _commit(self, saved: list[Row]) -> UnitResult:
        rows = sorted(saved + self._parts.rows, key=lambda row: row["key"])
        data = parquet(rows, self._all.config.id)
        return await self._finish(await asyncio.to_thread(storage.create, self._target, data))

    async def _finish(self, won: bool) -> UnitResult:
        spent = self._spent_before + self._spent()
        committed = await asyncio.to_thread(finish, self._run, self._name, self.shard, int(self._started), spent)
        return UnitResult(self.shard, committed.rows, len(self._parts.rows), committed.failed, won)

    def _spent(self) -> Spent:
        """Time of the actor so far."""
        return self._all.meter.spent(self.share)
