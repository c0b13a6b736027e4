"""The captioner kind `slow`: a tiny captioner whose captions take as long as those of a large model on a GPU.

The GPU exists in Ray's accounting only. The pool's `engine_options: {engine_args: {seconds: 2.0}}` says how long a
caption takes.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, Engine, EngineOptions, MultiTextEngine, TextRequest
from lotlip_data.captioners.models.base import Captioner
from lotlip_data.captioners.registry import get_default, get_kind


class Slow(Captioner):
    """The captioner kind `slow`."""

    template = "{prompt}"
    uses_torch = False  # torch would look for the GPU

    def load(self, config: CaptionerConfig, engine: str, resources: EngineOptions) -> Engine:
        options = dict(resources.engine_args)
        seconds = float(options.pop("seconds"))
        kind = get_default(config.model).kind
        tiny = get_kind(kind).load(config.replace(kind=kind), engine, resources.replace(engine_args=options))
        return SlowEngine(cast(MultiTextEngine, tiny), seconds)


class SlowEngine:
    """Passes requests to a real engine, and answers after `seconds` at the earliest."""

    def __init__(self, engine: MultiTextEngine, seconds: float) -> None:
        self._engine, self._seconds = engine, seconds
        self.special_texts = engine.special_texts
        self.window, self.burst = engine.window, engine.burst

    def prepare(self, image: Image.Image) -> Any:
        return self._engine.prepare(image)

    def prepare_texts(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[Any]:
        return self._engine.prepare_texts(image, requests)

    async def caption(self, prepared: Any) -> Caption:
        end = time.monotonic() + self._seconds
        caption = await self._engine.caption(prepared)
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        return caption

    def close(self) -> None:
        self._engine.close()
