"""One captioner's engine at work: it captions every image of a shard, and commits each text of the shard once.

Plain asyncio over an engine, without Ray. Images are read ahead and decoded on threads. A window of requests in flight
keeps the engine busy. Results go to part files as they arrive, so a kill costs at most one part. Shards submit their
images one after another: while the last captions of one shard are generated, the next shard fills the window, so the
engine never drains. A captioner with several prompts reads and prepares each image once, and sends the requests for its
texts one after another.
"""

import asyncio
import io
import itertools
import time
from collections.abc import Callable, Sequence
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
    prepare_texts,
)
from lotlip_data.captioners.quality_flags import empty, find_flags, truncated
from lotlip_data.captioners.sizing import reading_defaults
from lotlip_data.captioners.text_cleaning import clean
from lotlip_data.manifests.digests import DigestMismatch
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.downloading.reader import FetchedImage, ShardUnreadable
from lotlip_data.pipeline.recaptioning.prompts import PromptFiller, SampleRequest
from lotlip_data.pipeline.recaptioning.results import Row
from lotlip_data.pipeline.recaptioning.shard_attempt import ShardAttempt
from lotlip_data.pipeline.recaptioning.shard_text import PartSettings, ShardOutcome, ShardText
from lotlip_data.pipeline.recaptioning.usage import UsageMeter

WARM_UP_SIZES = ((64, 64), (96, 64), (64, 96))
"""Sizes of the plain images that a captioner must caption before it gets a shard: some fail for one shape only."""


class CaptionerBroken(UserError):
    """The captioner cannot caption even a plain image."""


@dataclass(frozen=True)
class Prepared:
    """One text that an image of a shard is to get.

    Attributes:
        fetched: The image.
        request: The text.
        input: The engine's input, or the CaptionError that explains why there is none.
    """

    fetched: FetchedImage
    request: SampleRequest
    input: Any


@dataclass
class CaptionWorker:
    """An engine, and what its shards share: the request window, the decoding threads, and the turn to submit.

    Attributes:
        run: The run.
        config: The captioner, with all its texts.
        engine: The engine, loaded with this configuration.
        engine_name: Recorded with each caption.
        part_size: Number of captions of one text of a shard that a kill can cost.
        concurrency: Requests in flight; None takes the engine's own window.
        gpus: GPUs that the engine holds, for the ledger.
        on_row: Called with the name of the text and every new row.
        model_digest: Of the model's files, if it is a folder; parts of another model are not used.
        max_rejected: Share of a shard's images above which rejections are not committed.
        decoders: Number of threads that decode and resize images.
        read_batch: Number of images that are read at a time; as many again are read ahead.
    """

    run: Run
    config: CaptionerConfig
    engine: Engine
    engine_name: str = ""
    part_size: int = 512
    concurrency: int | None = None
    gpus: float = 0.0
    on_row: Callable[[str, Row], None] = lambda name, row: None
    model_digest: str = ""
    max_rejected: float = 0.5
    decoders: int = field(default_factory=lambda: reading_defaults().decoders)
    read_batch: int = field(default_factory=lambda: reading_defaults().read_batch)

    def __post_init__(self) -> None:
        self.threads = ThreadPoolExecutor(self.decoders, "decode")
        self.window = RequestWindow(self.concurrency or self.engine.window, self.engine.burst)
        self.turn = asyncio.Lock()
        self._texts = self.config.texts
        self._filler = PromptFiller(self._texts, self.engine)
        self.meter = UsageMeter(self.gpus)
        self._attempts: set[ShardAttempt] = set()
        self._request_numbers = itertools.count()
        self._sent_at: dict[int, float] = {}
        self._last_answer_at = 0.0

    async def caption_shard(self, shard: int, names: Sequence[str] = ()) -> ShardOutcome:
        """Caption the images of `shard` that its parts lack, then commit the shard. Shards can run concurrently.

        What was captioned before an error is kept in parts, as far as the storage accepts it.

        Args:
            shard: The shard.
            names: Names of the texts to make. Default: all texts of the captioner. A text that is committed already is
                not made again.

        Raises:
            EngineDead: No image can be captioned any more.
            ShardUnreadable: The downloaded shard is damaged. If its tar is not the one that was committed, captions of
                damaged images may be among those that the parts have, so the parts are removed.
            TooManyDeaths: The engine died on too many images of the shard.
            RecaptionError: Another driver has claimed the name of a text.
            OSError: The storage failed.
        """
        attempt = ShardAttempt(self, shard, self._named(names))
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
            attempt.leave()

    async def warm_up(self, names: Sequence[str] = ()) -> None:
        """Caption plain images, so that a later failure points to an image.

        Args:
            names: Names of the texts to try. Default: all texts of the captioner.

        Raises:
            CaptionerBroken: One of them cannot be captioned, or all captions of a text are full of tokens without a
                word.
            EngineDead: The engine failed on one of them.
        """
        for text in self._named(names):
            captions = [await self._caption_plain_image(size, text) for size in WARM_UP_SIZES]
            if all(truncated(caption, text) and empty(caption, text) for caption in captions):
                form = ", and `structured`, whose form the model may not be able to write" if text.structured else ""
                raise CaptionerBroken(
                    f"captioner {text.name!r} gives plain images captions without a word, such as "
                    f"{captions[0].text[:40]!r}. Check the weights of {text.model}, which may be damaged or not "
                    f"finite in this precision (dtype), and the captioner's template{form}."
                )

    async def _caption_plain_image(self, size: tuple[int, int], text: CaptionerConfig) -> Caption:
        image, request = Image.new("RGB", size, "grey"), self._filler.sample_request(text)
        try:
            (prepared,) = prepare_texts(self.engine, self.config, image, [request])
            return await self._timed_caption(prepared)
        except (CaptionError, BlankImageFailed) as error:
            raise CaptionerBroken(
                f"captioner {text.name!r} cannot caption a plain image of {size[0]}×{size[1]} pixels: "
                f"{' '.join(str(error).split())}. Check the files of {text.model}, such as processor_config.json, and "
                "the captioner's template and max_model_len."
            ) from error

    def _named(self, names: Sequence[str]) -> list[CaptionerConfig]:
        return [text for text in self._texts if not names or text.name in names]

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

    def shard_text(self, config: CaptionerConfig, shard: int) -> ShardText:
        """One text of a shard, which has its share of the actor's time from now on."""
        settings = PartSettings(self.part_size, self.window.size, self.model_digest, self.max_rejected)
        return ShardText(self.run, config, shard, settings, self.meter)

    def prepare(self, images: Sequence[tuple[FetchedImage, Sequence[CaptionerConfig]]]) -> list[Prepared]:
        """Decode images and make the engine's inputs, on all threads. Blocks; not for the event loop.

        Each thread gets one slice: handing over work takes longer than decoding a small image.

        Args:
            images: Each with the texts that it is to get.

        Returns:
            One for each text of each image. Those of one image are adjacent, so that an engine that computes the tokens
            of an image for one text still has them for the next.
        """
        slice_size = -(-len(images) // self.decoders)
        slices = [images[start : start + slice_size] for start in range(0, len(images), slice_size)]
        return [prepared for batch in self.threads.map(self._prepare_slice, slices) for prepared in batch]

    def _prepare_slice(self, images: Sequence[tuple[FetchedImage, Sequence[CaptionerConfig]]]) -> list[Prepared]:
        return [prepared for fetched, texts in images for prepared in self._prepare_image(fetched, texts)]

    def _prepare_image(self, fetched: FetchedImage, texts: Sequence[CaptionerConfig]) -> list[Prepared]:
        requests = [self._filler.request(config, fetched.meta) for config in texts]
        inputs: Sequence[Any]
        try:
            inputs = prepare_texts(self.engine, self.config, _decode(fetched.image), requests)
        except CaptionError as error:
            inputs = [error] * len(requests)
        return [Prepared(fetched, request, input) for request, input in zip(requests, inputs, strict=True)]

    async def caption_row(self, prepared: Prepared) -> Row:
        """The row of one text of an image, with the caption or the reason for its absence."""
        row = self._blank_row(prepared.fetched, prepared.request)
        try:
            caption = clean(await self._timed_caption(prepared.input), prepared.request.config)
        except CaptionError as error:
            return row | {"error": str(error)}
        return row | {
            "text": caption.text,
            "finish_reason": caption.finish_reason,
            "tokens": caption.tokens,
            "flags": [*find_flags(caption, prepared.request.as_read), *prepared.request.flags],
        }

    def rejection_row(self, fetched: FetchedImage, config: CaptionerConfig, reason: str) -> Row:
        """The row of one text of an image that is not sent to the engine."""
        request = self._filler.request(config, fetched.meta)
        return self._blank_row(fetched, request) | {"error": reason}

    def _blank_row(self, fetched: FetchedImage, request: SampleRequest) -> Row:
        empty: Row = {"text": None, "finish_reason": None, "tokens": None, "flags": [], "error": None}
        origin = {"key": fetched.key, "uid": fetched.uid, "sha256": fetched.sha256, "engine": self.engine_name}
        return origin | empty | {"fields_sha256": request.fields_sha256}

    async def _timed_caption(self, prepared: Any) -> Caption:
        """As `engine.caption`, watched by `silent_for`. Raises a CaptionError that is in the place of the input."""
        if isinstance(prepared, CaptionError):
            raise prepared
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
