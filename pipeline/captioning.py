"""One captioner's engine at work on units: every image of a shard, one captioner, one commit.

Plain asyncio over an engine; nothing here knows of Ray. Images are read ahead and decoded on threads, a bounded window
of requests keeps the engine busy, and results go to part files as they come, so that a kill costs at most one part.
Units submit their images one after another: while the last captions of one are being written, the next fills the
window, and the engine never drains.
"""

import asyncio
import contextlib
import io
import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, Engine, EngineDead, EngineUnreachable
from lotlip_data.captioners.flags import flags_of
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline.attempt import Attempt
from lotlip_data.pipeline.caption_commit import UnitResult
from lotlip_data.pipeline.fetched import FetchedImage
from lotlip_data.pipeline.meter import Meter
from lotlip_data.pipeline.parts import Row
from lotlip_data.pipeline.window import Window

THREADS = min(4, os.cpu_count() or 1)
"""That decode and resize."""


@dataclass(frozen=True)
class Prepared:
    """An image of a shard and what the engine takes of it, or the CaptionError that says why there is none."""

    fetched: FetchedImage
    input: Any


@dataclass
class Captioning:
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
        self.window = Window(self.concurrency or self.engine.window, self.engine.burst)
        self.turn = asyncio.Lock()
        self.meter = Meter(self.gpus)
        self._attempts: set[Attempt] = set()
        self._numbers = itertools.count()
        self._asked: dict[int, float] = {}
        self._answered = 0.0

    async def unit(self, shard: int) -> UnitResult:
        """Caption what the parts of `shard` lack, then commit all of it. Several units may run at once.

        Raises EngineDead when no image can be captioned any more, ShardUnreadable, TooManyDeaths, and what the storage
        raises; what was captioned by then is kept in parts as far as the storage takes it.
        """
        attempt = Attempt(self, shard)
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
