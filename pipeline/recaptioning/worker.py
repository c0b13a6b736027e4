"""One captioner's engine at work on units: every image of a shard, one captioner, one commit.

Plain asyncio over an engine; nothing here knows of Ray. Images are read ahead and decoded on threads, a bounded window
of requests keeps the engine busy, and results go to part files as they come, so that a kill costs at most one part.
Units submit their images one after another: while the last captions of one are being written, the next fills the
window, and the engine never drains.

One attempt at a unit: what its parts lack goes to the engine, suspects of earlier deaths first, then the commit.

How many images are with the engine at a time.
"""

import asyncio
import contextlib
import io
import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, Engine, EngineDead, EngineUnreachable
from lotlip_data.captioners.quality_flags import flags_of
from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched, prefetch
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.downloading.reader import FetchedImage, fetched_images
from lotlip_data.pipeline.recaptioning.poison_images import FEW, MAX_GUILTY, InFlightLog, find_suspects
from lotlip_data.pipeline.recaptioning.results import PartialResults, Row, UnitResult, finish, parquet, read_partial
from lotlip_data.pipeline.recaptioning.usage import Usage, UsageMeter

THREADS = min(4, os.cpu_count() or 1)
"""That decode and resize."""


@dataclass(frozen=True)
class Prepared:
    """An image of a shard and what the engine takes of it, or the CaptionError that says why there is none."""

    fetched: FetchedImage
    input: Any


@dataclass
class CaptionWorker:
    """An engine, and what its units share: the window of requests in flight, the decoding threads, whose turn it is.

    part_size: captions that a kill may cost.
    concurrency: images in flight; None is the engine's own window.
    gpus: that the engine has, for the ledger.
    heard: is told of every new row.
    """

    run: Run
    config: CaptionerConfig
    engine: Engine
    engine_name: str = ""
    """Recorded with each caption."""
    part_size: int = 512
    concurrency: int | None = None
    gpus: float = 0.0
    heard: Callable[[Row], None] = lambda row: None
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "decode"))

    def __post_init__(self) -> None:
        self.window = RequestWindow(self.concurrency or self.engine.window, self.engine.burst)
        self.turn = asyncio.Lock()
        self.meter = UsageMeter(self.gpus)
        self._attempts: set[ShardAttempt] = set()
        self._numbers = itertools.count()
        self._asked: dict[int, float] = {}
        self._answered = 0.0

    async def unit(self, shard: int) -> UnitResult:
        """Caption what the parts of `shard` lack, then commit all of it. Several units may run at once.

        Raises EngineDead when no image can be captioned any more, ShardUnreadable, TooManyDeaths, and what the storage
        raises; what was captioned by then is kept in parts as far as the storage takes it.
        """
        attempt = ShardAttempt(self, shard)
        self._attempts.add(attempt)
        try:
            return await attempt.task
        except EngineUnreachable:  # no image's doing: nobody is suspected
            await self.leave()
            raise
        except EngineDead as error:
            await self.save(str(error))
            raise
        except BaseException:
            await attempt.leave()
            raise
        finally:
            self._attempts.discard(attempt)
            self.meter.leave(attempt.share)

    async def warm_up(self) -> None:
        """Caption a plain image: after it, a dying engine is some image's doing. Raises EngineDead."""
        with contextlib.suppress(CaptionError):
            await self._watched(self.engine.prepare(Image.new("RGB", (64, 64), "grey")))

    async def save(self, cause: str) -> None:
        """The engine is dead: save what is finished, and tell why the rest was left."""
        for attempt in list(self._attempts):
            await attempt.save(cause)

    async def leave(self) -> None:
        """Stop the units under way in good order: what is finished is saved, and nobody is to blame for the rest."""
        stopping = list(self._attempts)
        for attempt in stopping:
            attempt.task.cancel()
        await asyncio.gather(*(attempt.task for attempt in stopping), return_exceptions=True)
        for attempt in stopping:
            await attempt.leave()

    def silent_for(self) -> float:
        """Seconds in which images were with the engine and none came back."""
        waiting = list(self._asked.values())
        return time.monotonic() - max(self._answered, min(waiting)) if waiting else 0.0

    def prepared(self, images: Sequence[FetchedImage]) -> list[Prepared]:
        """The images decoded and made ready for the engine, on all threads. Blocks; not for the event loop.

        Some at a time: to hand work to a thread takes longer than to decode a small image.
        """
        share = -(-len(images) // THREADS)
        shares = [images[at : at + share] for at in range(0, len(images), share)]
        return [one for some in self.threads.map(self._prepare_some, shares) for one in some]

    def _prepare_some(self, images: Sequence[FetchedImage]) -> list[Prepared]:
        return [Prepared(image, self._prepare(image.image)) for image in images]

    def _prepare(self, content: bytes) -> Any:
        try:
            return self.engine.prepare(_decode(content))
        except CaptionError as error:
            return error

    async def row_of(self, image: Prepared) -> Row:
        """The caption of one image, or its reason for having none."""
        row = self._blank(image.fetched)
        try:
            if isinstance(image.input, CaptionError):
                raise image.input
            caption = await self._watched(image.input)
        except CaptionError as error:
            return row | {"error": str(error)}
        return row | {
            "text": caption.text,
            "finish_reason": caption.finish_reason,
            "tokens": caption.tokens,
            "flags": flags_of(caption, self.config),
        }

    def refusal(self, fetched: FetchedImage, reason: str) -> Row:
        return self._blank(fetched) | {"error": reason}

    def _blank(self, fetched: FetchedImage) -> Row:
        nothing: Row = {"text": None, "finish_reason": None, "tokens": None, "flags": [], "error": None}
        return {"key": fetched.key, "uid": fetched.uid, "sha256": fetched.sha256, "engine": self.engine_name} | nothing

    async def _watched(self, prepared: Any) -> Caption:
        number = next(self._numbers)
        self._asked[number] = time.monotonic()
        try:
            return await self.engine.caption(prepared)
        finally:
            del self._asked[number]
            self._answered = time.monotonic()


def _decode(content: bytes) -> Image.Image:
    """RGB pixels. Raises CaptionError for bytes that are no readable image: its neighbours must not suffer."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CaptionError(f"the stored image cannot be decoded: {error}") from error


BATCH = 32
"""Images read at a time, and as many read ahead."""


class TooManyDeaths(UserError):
    """More images of a unit killed the engine than bad images would."""


class ShardAttempt:
    """One attempt at a unit."""

    def __init__(self, captioning: "CaptionWorker", shard: int) -> None:
        self._all, self.shard = captioning, shard
        self._run, self._name = captioning.run, captioning.config.name
        self._folder = self._run.caption_parts(self._name, shard)
        self._target = self._run.caption_shard(self._name, shard)
        attempt = uuid.uuid4().hex[:8]
        self._trail = InFlightLog(self._folder, attempt)
        self._started, self._spent_before = time.time(), Usage()
        # A kill costs the part that is being written, the slack that comes in meanwhile, and a window that waits then:
        # part_size together, unless the window alone is more.
        size = max(1, captioning.part_size // 4)
        slack = max(1, captioning.part_size - size - captioning.window.size)
        self.share = captioning.meter.join()
        self._parts = PartialResults(self._folder, attempt, size, slack, self._trail.settle, self._spent)
        self._running: set[asyncio.Task[None]] = set()
        self.task = asyncio.create_task(self.caption())

    async def caption(self) -> UnitResult:
        if await asyncio.to_thread(storage.exists, self._target):  # by another driver, or before an answer was lost
            return await self._finish(won=False)
        saved, begun, self._spent_before = await asyncio.to_thread(read_partial, self._folder)
        self._started = min(self._started, begun)
        settled = {row["uid"] for row in saved}
        suspected = await asyncio.to_thread(find_suspects, self._folder, settled)
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

        async with contextlib.aclosing(prefetch(batches())) as ahead:
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
            async for few in prefetch(batched(self._images(guilty.__contains__), FEW)):
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
        async for few in prefetch(batched(self._images(suspects.__contains__), size)):
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

    def _spent(self) -> Usage:
        """Time of the actor so far."""
        return self._all.meter.spent(self.share)


class RequestWindow:
    """At most `size` images at a time. Once it is full, it opens again for `burst` of them together.

    An image that is sent by itself wakes the threads of two processes, which takes longer than the sending; of images
    that are sent together, only the first does. One task at a time may wait: in Captioning, that which has the turn.
    """

    def __init__(self, size: int, burst: int) -> None:
        self.size = size
        self._burst = max(1, min(burst, size // 2))
        self._free = size
        self._awaited = 0
        self._enough = asyncio.Event()

    async def enter(self) -> None:
        """Takes a place, once there is one."""
        if not self._free:
            await self._until_free(self._burst)
        self._free -= 1

    def leave(self) -> None:
        self._free += 1
        if self._free >= self._awaited:
            self._enough.set()

    async def empty(self) -> None:
        """Until nothing is with the engine."""
        await self._until_free(self.size)

    async def _until_free(self, places: int) -> None:
        self._awaited = places
        self._enough.clear()
        if self._free < places:
            await self._enough.wait()
