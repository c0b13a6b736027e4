"""One captioner's engine at work: it captions every image of a shard and commits the result once.

Plain asyncio over an engine, without Ray. Images are read ahead and decoded on threads. A window of requests in flight
keeps the engine busy. Results go to part files as they arrive, so a kill costs at most one part. Shards submit their
images one after another: while the last captions of one shard are generated, the next shard fills the window, so the
engine never drains.
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

from lotlip_data.captioners.base import (
    BlankImageFailed,
    Caption,
    CaptionerConfig,
    CaptionError,
    Engine,
    EngineDead,
    EngineUnreachable,
)
from lotlip_data.captioners.quality_flags import empty, find_flags
from lotlip_data.manifests import storage
from lotlip_data.manifests.digests import DigestMismatch
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched, prefetch
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.core.ledger import ImageMarker, read_image_stats
from lotlip_data.pipeline.downloading.reader import (
    FetchedImage,
    ShardUnreadable,
    fetched_images,
    refetch_remedy,
)
from lotlip_data.pipeline.recaptioning.claims import check_claims
from lotlip_data.pipeline.recaptioning.poison_images import (
    MAX_POISON_IMAGES,
    SMALL_BATCH_SIZE,
    InFlightLog,
    find_suspects,
)
from lotlip_data.pipeline.recaptioning.results import (
    PartialResults,
    Row,
    UnitResult,
    check_rejections,
    encode_rows,
    exceeds_rejections,
    finish_commit,
    is_lost,
    read_partial,
)
from lotlip_data.pipeline.recaptioning.usage import Usage, UsageMeter

THREADS = min(4, os.cpu_count() or 1)
"""Threads that decode and resize images."""

READ_BATCH = 32
"""Images read at a time; as many again are read ahead."""

WARM_UP_SIZES = ((64, 64), (96, 64), (64, 96))
"""Sizes of the plain images that a captioner must caption before it gets a shard: some fail for one shape only."""


class CaptionerBroken(UserError):
    """The captioner cannot caption even a plain image."""


class TooManyDeaths(UserError):
    """More images of a shard killed the engine than poison images would."""


@dataclass(frozen=True)
class Prepared:
    """An image of a shard and the engine's input for it, or the CaptionError that explains why there is none."""

    fetched: FetchedImage
    input: Any


@dataclass
class CaptionWorker:
    """An engine, and what its shards share: the request window, the decoding threads, and the turn to submit.

    Attributes:
        run: The run.
        config: The captioner.
        engine: The loaded engine.
        engine_name: Recorded with each caption.
        part_size: Number of captions that a kill can cost.
        concurrency: Images in flight; None takes the engine's own window.
        gpus: GPUs that the engine holds, for the ledger.
        on_row: Called with every new row.
        model_digest: Of the model's files, if it is a folder; parts of another model are not used.
        max_rejected: Share of a shard's images above which rejections are not committed.
    """

    run: Run
    config: CaptionerConfig
    engine: Engine
    engine_name: str = ""
    part_size: int = 512
    concurrency: int | None = None
    gpus: float = 0.0
    on_row: Callable[[Row], None] = lambda row: None
    model_digest: str = ""
    max_rejected: float = 0.5
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "decode"))

    def __post_init__(self) -> None:
        self.window = RequestWindow(self.concurrency or self.engine.window, self.engine.burst)
        self.turn = asyncio.Lock()
        self.meter = UsageMeter(self.gpus)
        self.parts_id = f"{self.config.id}+{self.model_digest}" if self.model_digest else self.config.id
        self._attempts: set[ShardAttempt] = set()
        self._request_numbers = itertools.count()
        self._sent_at: dict[int, float] = {}
        self._last_answer_at = 0.0

    async def caption_shard(self, shard: int) -> UnitResult:
        """Caption the images of `shard` that its parts lack, then commit the shard. Shards can run concurrently.

        What was captioned before an error is kept in parts, as far as the storage accepts it.

        Raises:
            EngineDead: No image can be captioned any more.
            ShardUnreadable: The downloaded shard is damaged. If its tar is not the one that was committed, captions of
                damaged images may be among those that the parts have, so the parts are removed.
            TooManyDeaths: The engine died on too many images of the shard.
            TooManyRejections: More than `max_rejected` of the images cannot be captioned.
            RecaptionError: Another driver has claimed the captioner's name.
            OSError: The storage failed.
        """
        attempt = ShardAttempt(self, shard)
        self._attempts.add(attempt)
        try:
            return await attempt.task
        except EngineUnreachable:  # the endpoint is down: no image is suspect
            await self.drain()
            raise
        except EngineDead as error:
            await self.save_after_death(str(error))
            raise
        except BaseException as error:
            await attempt.withdraw()
            if isinstance(error, ShardUnreadable) and isinstance(error.__cause__, DigestMismatch):
                await attempt.discard()
            raise
        finally:
            self._attempts.discard(attempt)
            self.meter.leave(attempt.share)

    async def warm_up(self) -> None:
        """Caption plain images, so that a later failure points to an image.

        Raises:
            CaptionerBroken: One of them cannot be captioned, or no caption has a word.
            EngineDead: The engine failed on one of them.
        """
        captions = list[Caption]()
        for size in WARM_UP_SIZES:
            try:
                captions.append(await self._timed_caption(self.engine.prepare(Image.new("RGB", size, "grey"))))
            except (CaptionError, BlankImageFailed) as error:
                raise CaptionerBroken(
                    f"captioner {self.config.name!r} cannot caption a plain image of {size[0]}×{size[1]} pixels: "
                    f"{' '.join(str(error).split())}. Check the files of {self.config.model}, such as "
                    "processor_config.json, and the captioner's template and max_model_len."
                ) from error
        if all(empty(caption, self.config) for caption in captions):
            raise CaptionerBroken(
                f"captioner {self.config.name!r} gives plain images captions without a word, such as "
                f"{captions[0].text[:40]!r}. Check the weights of {self.config.model}, which may be damaged or not "
                "finite in this precision (dtype), and the captioner's template and end tokens."
            )

    async def save_after_death(self, cause: str) -> None:
        """The engine is dead: save finished captions, and record the cause for the images in flight."""
        for attempt in list(self._attempts):
            await attempt.record_death(cause)

    async def drain(self) -> None:
        """Stop the running shards in good order: save finished captions and suspect no image."""
        stopping = list(self._attempts)
        for attempt in stopping:
            attempt.task.cancel()
        await asyncio.gather(*(attempt.task for attempt in stopping), return_exceptions=True)
        for attempt in stopping:
            await attempt.withdraw()

    def silent_for(self) -> float:
        """Seconds since the engine's last answer while requests are in flight; 0 if none is."""
        sent_at = list(self._sent_at.values())
        return time.monotonic() - max(self._last_answer_at, min(sent_at)) if sent_at else 0.0

    def prepare(self, images: Sequence[FetchedImage]) -> list[Prepared]:
        """Decode images and make the engine's inputs, on all threads. Blocks; not for the event loop.

        Each thread gets one slice: handing over work takes longer than decoding a small image.
        """
        slice_size = -(-len(images) // THREADS)
        slices = [images[start : start + slice_size] for start in range(0, len(images), slice_size)]
        return [prepared for batch in self.threads.map(self._prepare_slice, slices) for prepared in batch]

    def _prepare_slice(self, images: Sequence[FetchedImage]) -> list[Prepared]:
        return [Prepared(image, self._prepare_image(image.image)) for image in images]

    def _prepare_image(self, content: bytes) -> Any:
        try:
            return self.engine.prepare(_decode(content))
        except CaptionError as error:
            return error

    async def caption_row(self, image: Prepared) -> Row:
        """The row of one image, with its caption or the reason for its absence."""
        row = self._blank_row(image.fetched)
        try:
            if isinstance(image.input, CaptionError):
                raise image.input
            caption = await self._timed_caption(image.input)
        except CaptionError as error:
            return row | {"error": str(error)}
        return row | {
            "text": caption.text,
            "finish_reason": caption.finish_reason,
            "tokens": caption.tokens,
            "flags": find_flags(caption, self.config),
        }

    def rejection_row(self, fetched: FetchedImage, reason: str) -> Row:
        """The row of an image that is not sent to the engine."""
        return self._blank_row(fetched) | {"error": reason}

    def _blank_row(self, fetched: FetchedImage) -> Row:
        empty: Row = {"text": None, "finish_reason": None, "tokens": None, "flags": [], "error": None}
        return {"key": fetched.key, "uid": fetched.uid, "sha256": fetched.sha256, "engine": self.engine_name} | empty

    async def _timed_caption(self, prepared: Any) -> Caption:
        """As `engine.caption`, watched by `silent_for`."""
        number = next(self._request_numbers)
        self._sent_at[number] = time.monotonic()
        try:
            return await self.engine.caption(prepared)
        finally:
            del self._sent_at[number]
            self._last_answer_at = time.monotonic()


def _decode(content: bytes) -> Image.Image:
    """RGB pixels. Raises CaptionError for an undecodable image, so that its neighbours do not suffer."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CaptionError(f"the stored image cannot be decoded: {error}") from error


class ShardAttempt:
    """One attempt at a shard: suspects of earlier deaths, then all images that the parts lack, then the commit."""

    def __init__(self, worker: CaptionWorker, shard: int) -> None:
        self._worker, self.shard = worker, shard
        self._run, self._name = worker.run, worker.config.name
        self._folder = self._run.caption_parts(self._name, shard)
        self._target = self._run.caption_shard(self._name, shard)
        attempt = uuid.uuid4().hex[:8]
        self._in_flight = InFlightLog(self._folder, attempt)
        self._started_at, self._earlier_usage = time.time(), Usage()
        # A kill costs the part that is being written, the slack that arrives meanwhile, and the window: together
        # part_size captions, unless the window alone is larger.
        size = max(1, worker.part_size // 4)
        slack = max(1, worker.part_size - size - worker.window.size)
        self.share = worker.meter.join()
        self._parts = PartialResults(
            self._folder, attempt, size, slack, self._in_flight.remove, self._usage, worker.parts_id
        )
        self._uids: set[str] = set()
        """The images of the tar that have been read."""
        self._running: set[asyncio.Task[None]] = set()
        self.task = asyncio.create_task(self.caption())

    async def caption(self) -> UnitResult:
        """Caption and commit the shard."""
        if await asyncio.to_thread(storage.exists, self._target):  # by another driver, or before an answer was lost
            return await self._finish(won=False)
        marker = await asyncio.to_thread(read_image_stats, self._run, self.shard)
        self._parts.origin["tar"] = marker["tar"]
        origin, max_rejected = self._parts.origin, self._worker.max_rejected
        saved, first_started_at, self._earlier_usage = await asyncio.to_thread(read_partial, self._folder, origin)
        if exceeds_rejections(saved, max_rejected):  # an earlier attempt was not committed because of them
            saved = [row for row in saved if not is_lost(row)]
        self._started_at = min(self._started_at, first_started_at)
        done = {row["uid"] for row in saved}
        suspects = await asyncio.to_thread(find_suspects, self._folder, done)
        try:
            async with self._worker.turn:
                await self._reject(suspects.poison)
                await self._try_alone(suspects.single, 1)
                await self._try_alone(suspects.small_batch, SMALL_BATCH_SIZE)
                done |= suspects.small_batch | suspects.single | suspects.poison.keys()
                await self._submit_all(done | suspects.deferred)
                await self._try_alone(suspects.deferred, 1)
            while self._running:
                await self._wait_for_some()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        await self._parts.close()
        return await self._commit(saved, marker)

    async def record_death(self, cause: str) -> None:
        """Save finished captions, and record the cause of the engine's death for the images in flight."""
        with contextlib.suppress(OSError):
            await self._parts.save()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._in_flight.record_death, cause)

    async def withdraw(self) -> None:
        """Save finished captions, and suspect no image."""
        with contextlib.suppress(OSError):
            await self._parts.save()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._in_flight.withdraw)

    async def discard(self) -> None:
        """Remove the parts."""
        with contextlib.suppress(OSError):
            await asyncio.to_thread(storage.remove, self._folder)

    async def _submit_all(self, excluded: set[str]) -> None:
        def batches() -> Iterator[list[Prepared]]:
            for batch in batched(self._images(lambda uid: uid not in excluded), READ_BATCH):
                self._in_flight.add(image.uid for image in batch)  # before a decoder that can crash sees them
                yield self._worker.prepare(batch)

        async with contextlib.aclosing(prefetch(batches())) as prepared_batches:
            async for batch in prepared_batches:
                for image in batch:
                    await self._worker.window.acquire()
                    self._running.add(asyncio.create_task(self._caption_one(image, self._worker.window.release)))
                    if any(task.done() for task in self._running):
                        await self._wait_for_some()

    async def _wait_for_some(self) -> None:
        """Wait for at least one running caption, and raise what it raised."""
        done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        errors = [task.exception() for task in done]  # retrieve all: asyncio complains about unretrieved ones
        if error := next(filter(None, errors), None):
            raise error

    async def _caption_one(self, image: Prepared, release: Callable[[], None] = lambda: None) -> None:
        try:
            await self._add_row(await self._worker.caption_row(image))
        finally:
            release()

    async def _add_row(self, row: Row) -> None:
        self._worker.on_row(row)
        await self._parts.add(row)

    async def _reject(self, poison: dict[str, str]) -> None:
        """Record poison images (uid → reason) without another try."""
        if len(poison) > MAX_POISON_IMAGES:
            raise TooManyDeaths(
                f"{len(poison)} images of shard {shard_name(self.shard)} each crashed the engine on their own, which "
                "points to the engine, not the images. Check its memory and its log, then start again. To retry all of "
                f"these images, remove {self._folder}."
            )
        if poison:
            async for batch in prefetch(batched(self._images(poison.__contains__), SMALL_BATCH_SIZE)):
                for image in batch:
                    await self._add_row(self._worker.rejection_row(image, poison[image.uid]))

    async def _try_alone(self, suspects: frozenset[str], batch_size: int) -> None:
        """Send suspects `batch_size` at a time with nothing else in flight, and save each batch before the next."""
        if not suspects:
            return
        while self._running:
            await self._wait_for_some()
        await self._worker.window.drained()
        await self._parts.save()  # so that the log names these images only
        async for batch in prefetch(batched(self._images(suspects.__contains__), batch_size)):
            await asyncio.to_thread(self._in_flight.add, [image.uid for image in batch])
            await asyncio.gather(*map(self._caption_one, await asyncio.to_thread(self._worker.prepare, batch)))
            await self._parts.save()

    def _images(self, is_wanted: Callable[[str], bool]) -> Iterator[FetchedImage]:
        for image in fetched_images(self._run, self.shard):
            self._uids.add(image.uid)
            if is_wanted(image.uid):
                yield image

    async def _commit(self, saved: list[Row], marker: ImageMarker) -> UnitResult:
        """Commit one row per image of the tar. Raises ShardUnreadable if an image has none, or two."""
        rows = [row for row in saved + self._parts.rows if row["uid"] in self._uids]
        rows.sort(key=lambda row: row["key"])
        if not len(rows) == len(self._uids) == marker["successes"]:
            raise ShardUnreadable(
                f"{self._run.image_file(marker['tar'])}: {len(rows)} captions or reasons of {len(self._uids)} images, "
                f"but its marker says {marker['successes']}. {refetch_remedy(self._run, self.shard)}"
            )
        check_rejections(rows, self._worker.max_rejected, self.shard)
        await asyncio.to_thread(check_claims, self._run, self._worker.config, self._worker.model_digest)
        content = encode_rows(rows, captioner=self._worker.config.id)
        return await self._finish(await asyncio.to_thread(storage.create, self._target, content))

    async def _finish(self, won: bool) -> UnitResult:
        usage = self._earlier_usage + self._usage()
        started_at = int(self._started_at)
        record = await asyncio.to_thread(finish_commit, self._run, self._name, self.shard, started_at, usage)
        return UnitResult(self.shard, record.rows, len(self._parts.rows), record.failed, won, record.tokens)

    def _usage(self) -> Usage:
        """The actor's time for this attempt so far."""
        return self._worker.meter.usage_of(self.share)


class RequestWindow:
    """At most `size` requests in flight. A full window reopens only for `burst` requests at once.

    Sending one image by itself wakes the threads of two processes, which takes longer than the sending. Of images that
    are sent together, only the first pays for it. At most one task may wait: the one that has `CaptionWorker.turn`.
    """

    def __init__(self, size: int, burst: int) -> None:
        self.size = size
        self._burst = max(1, min(burst, size // 2))
        self._free = size
        self._needed = 0
        self._enough = asyncio.Event()

    async def acquire(self) -> None:
        """Take a slot, once there is one."""
        if not self._free:
            await self._until_free(self._burst)
        self._free -= 1

    def release(self) -> None:
        """Give a slot back."""
        self._free += 1
        if self._free >= self._needed:
            self._enough.set()

    async def drained(self) -> None:
        """Wait until no request is in flight."""
        await self._until_free(self.size)

    async def _until_free(self, slots: int) -> None:
        self._needed = slots
        self._enough.clear()
        if self._free < slots:
            await self._enough.wait()
