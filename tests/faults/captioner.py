"""The captioner kinds `faulty`, a tiny captioner whose engine fails at chosen images, and `texts`, without a model.

Files in a folder choose them; the pool's `engine_options: {engine_args: {faults: FOLDER}}` names it. File names:
  kill-HASH    the process is killed at this image, as by a decoder that crashes
  hang-HASH    the engine hangs from this image on
  oom-HASH     the device runs out of memory at this image
  fail-HASH    the request for this image fails
  once-…       the same, the first time only
  hold-HASH    this image waits while the file exists
  say          its content is put before every text, as if the engine had changed
  log          the engine appends the image's hash for every finished caption
HASH is `hash_of` the decoded image.
"""

import asyncio
import hashlib
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from PIL import Image

from lotlip_data.captioners.base import (
    Caption,
    CaptionerConfig,
    CaptionError,
    Engine,
    EngineDead,
    EngineOptions,
    MultiTextEngine,
    TextRequest,
)
from lotlip_data.captioners.models.base import Captioner
from lotlip_data.captioners.registry import get_default, get_kind


def hash_of(image: Image.Image) -> str:
    """A hash of the pixels of a decoded image."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


class Faulty(Captioner):
    """The captioner kind `faulty`."""

    template = "{prompt}"
    uses_torch = False  # the GPUs of a test's cluster may exist in Ray's accounting only

    def load(self, config: CaptionerConfig, engine: str, resources: EngineOptions) -> Engine:
        options = dict(resources.engine_args)
        faults = Path(options.pop("faults"))
        kind = get_default(config.model).kind
        real_engine = get_kind(kind).load(config.replace(kind=kind), engine, resources.replace(engine_args=options))
        return FaultyEngine(cast(MultiTextEngine, real_engine), faults)


class FaultyEngine:
    """Passes requests to a real engine, and injects the faults of a folder."""

    def __init__(self, engine: MultiTextEngine, faults: Path) -> None:
        self._engine, self._faults = engine, faults
        self.special_texts = engine.special_texts
        self.window, self.burst = engine.window, engine.burst
        self.capacity = getattr(engine, "capacity", None)
        self._hung = False

    def prepare(self, image: Image.Image) -> tuple[str, Any]:
        return hash_of(image), self._engine.prepare(image)

    def prepare_texts(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[tuple[str, Any]]:
        return [(hash_of(image), prepared) for prepared in self._engine.prepare_texts(image, requests)]

    async def caption(self, prepared: tuple[str, Any]) -> Caption:
        image_hash, engine_input = prepared
        while (self._faults / f"hold-{image_hash}").exists():
            await asyncio.sleep(0.05)
        if self._has_fault("hang", image_hash) or self._hung:
            self._hung = True
            await asyncio.sleep(10_000)
        if self._has_fault("kill", image_hash):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._has_fault("oom", image_hash):
            raise EngineDead("not even one image fits in memory: CUDA out of memory")
        if self._has_fault("fail", image_hash):
            raise CaptionError("the request failed")
        caption = await self._engine.caption(engine_input)
        with open(self._faults / "log", "a") as log:
            log.write(f"{image_hash}\n")
        prefix = self._faults / "say"
        return replace(caption, text=prefix.read_text() + caption.text) if prefix.exists() else caption

    def close(self) -> None:
        self._engine.close()

    def _has_fault(self, fault: str, image_hash: str) -> bool:
        once = self._faults / f"once-{fault}-{image_hash}"
        try:
            once.unlink()
        except FileNotFoundError:
            return (self._faults / f"{fault}-{image_hash}").exists()
        return True


class Texts(Captioner):
    """The captioner kind `texts`: it needs no model, and its texts are the prompt and the hash of the image.

    It fails at images and texts that the folder of faults names: `fail-NAME` for the text NAME of all images.
    """

    template = "{prompt}"
    needs_gpu = uses_torch = loads_model = False

    def load(self, config: CaptionerConfig, engine: str, resources: EngineOptions) -> Engine:
        return TextsEngine(Path(resources.engine_args["faults"]))


class TextsEngine:
    """Makes any number of texts of an image, and logs each as `NAME HASH`."""

    window, burst = 8, 2
    special_texts = frozenset[str]()

    def __init__(self, faults: Path) -> None:
        self._faults = faults

    def prepare(self, image: Image.Image) -> Any:
        raise NotImplementedError("a captioner of this kind has `prompts`")

    def prepare_texts(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[tuple[str, TextRequest]]:
        return [(hash_of(image), request) for request in requests]

    async def caption(self, prepared: tuple[str, TextRequest]) -> Caption:
        image_hash, request = prepared
        await asyncio.sleep(0)
        if (self._faults / f"fail-{request.config.name}").exists():
            raise CaptionError("the request failed")
        with open(self._faults / "log", "a") as log:
            log.write(f"{request.config.name} {image_hash}\n")
        return Caption(f"{request.prompt} {image_hash}", "stop", 2)

    def close(self) -> None:
        pass
