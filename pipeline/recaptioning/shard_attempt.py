"""One attempt at a shard: it reads each image once, for all texts of a captioner that the shard lacks."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched, prefetch
from lotlip_data.manifests.run_layout import shard_name
from lotlip_data.pipeline.core.ledger import images_file, read_image_stats
from lotlip_data.pipeline.downloading.reader import FetchedImage, ShardUnreadable, fetched_images, refetch_remedy
from lotlip_data.pipeline.recaptioning.poison_images import (
    MAX_POISON_IMAGES,
    SMALL_BATCH_SIZE,
    InFlightLog,
    find_suspects,
)
from lotlip_data.pipeline.recaptioning.results import RecaptionError, Row, UnitResult
from lotlip_data.pipeline.recaptioning.shard_text import ShardOutcome, ShardText

if TYPE_CHECKING:
    from lotlip_data.pipeline.recaptioning.worker import CaptionWorker, Prepared


class TooManyDeaths(UserError):
    """More images of a shard killed the engine than poison images would."""


class ShardAttempt:
    """One attempt: suspects of earlier deaths, then all images of which a text is lacking, then the commits.

    The images in flight are logged beside the parts of the last text. It is committed last, and its log goes with it.

    Args:
        worker: The engine and what its shards share.
        shard: The shard.
        texts: The texts to make.
    """

    def __init__(self, worker: "CaptionWorker", shard: int, texts: Sequence[CaptionerConfig]) -> None:
        self._worker, self._run, self.shard = worker, worker.run, shard
        self._texts = {config.name: worker.shard_text(config, shard) for config in texts}
        """Those that are not committed. Names → texts, in the order of their commits."""
        self._attempt = uuid.uuid4().hex[:8]
        self._in_flight: InFlightLog | None = None
        self._unsaved_texts: dict[str, int] = {}
        """By uid of an image in flight, the number of its texts that are not saved."""
        self._uids: set[str] = set()
        """The images of the shard that have been read."""
        self._running: set[asyncio.Task[None]] = set()
        self.task = asyncio.create_task(self.caption())

    async def caption(self) -> ShardOutcome:
        """Caption the shard, and commit its texts."""
        done = await self._finish_committed()
        if not self._texts:
            return ShardOutcome(done, {})
        marker = await asyncio.to_thread(read_image_stats, self._run, self.shard)
        texts = list(self._texts.values())
        self._in_flight = InFlightLog(texts[-1].folder, self._attempt)
        for text in texts:
            await text.open(self._attempt, images_file(marker), self._note_saved)
        saved = set.intersection(*(text.saved_uids for text in texts))
        suspects = await asyncio.to_thread(find_suspects, [text.folder for text in texts], saved)
        try:
            async with self._worker.turn:
                await self._reject(suspects.poison)
                await self._try_alone(suspects.single, 1)
                await self._try_alone(suspects.small_batch, SMALL_BATCH_SIZE)
                tried = {*suspects.small_batch, *suspects.single, *suspects.poison}
                await self._submit_all(tried | suspects.deferred)
                await self._try_alone(suspects.deferred, 1)
            while self._running:
                await self._wait_for_some()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        for text in texts:
            await text.close()
        return await self._commit(done, images_file(marker), marker["successes"])

    async def record_death(self, cause: str) -> None:
        """Save finished captions, and record the cause of the engine's death for the images in flight."""
        await self._save()
        if self._in_flight:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._in_flight.record_death, cause)

    async def withdraw(self) -> None:
        """Save finished captions, and suspect no image."""
        await self._save()
        if self._in_flight:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._in_flight.withdraw)

    async def discard(self) -> None:
        """Remove the parts."""
        for text in self._texts.values():
            await text.discard()

    def leave(self) -> None:
        """End the attempt's share of the actor's time."""
        for text in self._texts.values():
            text.leave()

    async def _save(self) -> None:
        for text in self._texts.values():
            with contextlib.suppress(OSError):
                await text.save()

    async def _finish_committed(self) -> list[UnitResult]:
        """Count the texts that are committed already, and keep the others."""
        done = []
        for text in list(self._texts.values()):
            if await text.is_committed():
                done.append(await text.finish(won=False))
                self._drop(text)
        return done

    def _drop(self, text: ShardText) -> None:
        """Forget a committed text, which has no parts any more."""
        text.leave()
        del self._texts[text.name]

    async def _submit_all(self, excluded: set[str]) -> None:
        def batches() -> "Iterator[list[Prepared]]":
            images = self._images(lambda uid: uid not in excluded)
            for batch in batched(images, self._worker.read_batch):
                self._log(batch)  # before a decoder that can crash sees them
                yield self._worker.prepare([(image, self._lacking(image.uid)) for image in batch])

        async with contextlib.aclosing(prefetch(batches())) as prepared_batches:
            async for batch in prepared_batches:
                for prepared in batch:
                    await self._worker.window.acquire()
                    self._running.add(asyncio.create_task(self._caption_one(prepared, self._worker.window.release)))
                    if any(task.done() for task in self._running):
                        await self._wait_for_some()

    async def _wait_for_some(self) -> None:
        """Wait for at least one running caption, and raise what it raised."""
        done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        errors = [task.exception() for task in done]  # retrieve all: asyncio complains about unretrieved ones
        if error := next(filter(None, errors), None):
            raise error

    async def _caption_one(self, prepared: "Prepared", release: Callable[[], None] = lambda: None) -> None:
        try:
            await self._add_row(prepared.request.config, await self._worker.caption_row(prepared))
        finally:
            release()

    async def _add_row(self, config: CaptionerConfig, row: Row) -> None:
        self._worker.on_row(config.name, row)
        await self._texts[config.name].add(row)

    async def _reject(self, poison: dict[str, str]) -> None:
        """Record poison images (uid → reason) without another try."""
        if len(poison) > MAX_POISON_IMAGES:
            folders = " and ".join(text.folder for text in self._texts.values())
            raise TooManyDeaths(
                f"{len(poison)} images of shard {shard_name(self.shard)} each crashed the engine on their own, which "
                "points to the engine, not the images. Check its memory and its log, then start again. To retry all of "
                f"these images, remove {folders}."
            )
        if poison:
            async for batch in prefetch(batched(self._images(poison.__contains__), SMALL_BATCH_SIZE)):
                for image in batch:
                    for config in self._lacking(image.uid):
                        await self._add_row(config, self._worker.rejection_row(image, config, poison[image.uid]))

    async def _try_alone(self, suspects: frozenset[str], batch_size: int) -> None:
        """Send suspects `batch_size` at a time with nothing else in flight, and save each batch before the next."""
        if not suspects:
            return
        while self._running:
            await self._wait_for_some()
        await self._worker.window.drained()
        await self._save_all()  # so that the log names these images only
        async for batch in prefetch(batched(self._images(suspects.__contains__), batch_size)):
            await asyncio.to_thread(self._log, batch)
            images = [(image, self._lacking(image.uid)) for image in batch]
            await asyncio.gather(*map(self._caption_one, await asyncio.to_thread(self._worker.prepare, images)))
            await self._save_all()

    async def _save_all(self) -> None:
        for text in self._texts.values():
            await text.save()

    def _images(self, is_wanted: Callable[[str], bool]) -> Iterator[FetchedImage]:
        """The images of the shard that are wanted and lack a text."""
        for image in fetched_images(self._run, self.shard):
            self._uids.add(image.uid)
            if is_wanted(image.uid) and self._lacking(image.uid):
                yield image

    def _lacking(self, uid: str) -> list[CaptionerConfig]:
        """The texts that earlier attempts have not saved for an image."""
        return [text.config for text in self._texts.values() if uid not in text.saved_uids]

    def _log(self, images: Sequence[FetchedImage]) -> None:
        """Name images that are about to be prepared and sent to the engine, in the storage."""
        assert self._in_flight is not None
        self._unsaved_texts.update({image.uid: len(self._lacking(image.uid)) for image in images})
        self._in_flight.add(image.uid for image in images)

    def _note_saved(self, uids: Iterable[str]) -> None:
        """A part with one text of these images is saved. Images of which all texts are saved are not in flight."""
        assert self._in_flight is not None
        finished = []
        for uid in uids:
            left = self._unsaved_texts.pop(uid, 1) - 1
            if left:
                self._unsaved_texts[uid] = left
            else:
                finished.append(uid)
        self._in_flight.remove(finished)

    async def _commit(self, done: list[UnitResult], file: str, images: int) -> ShardOutcome:
        """Commit one row per image of the shard for each text.

        Raises:
            ShardUnreadable: An image has no row, or two.
            RecaptionError: Another driver has claimed the name of a text. The other texts are committed.
        """
        texts = {text: text.rows_of(self._uids) for text in self._texts.values()}
        if wrong := [rows for rows in texts.values() if not len(rows) == len(self._uids) == images]:
            raise ShardUnreadable(
                f"{self._run.image_file(file)}: {len(wrong[0])} captions or reasons of {len(self._uids)} images, "
                f"but its marker says {images}. {refetch_remedy(self._run, self.shard)}"
            )
        refused = {text.name: reason for text, rows in texts.items() if (reason := text.refusal(rows))}
        conflicts = []
        for text, rows in texts.items():
            if text.name not in refused:
                try:
                    done.append(await text.commit(rows))
                except RecaptionError as error:
                    conflicts.append(error)
                else:
                    self._drop(text)
        if conflicts:
            raise conflicts[0]
        if refused:
            await self.withdraw()
        return ShardOutcome(done, refused)
