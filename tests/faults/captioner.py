"""The captioner kind `faulty`: a real tiny captioner, whose engine fails at the images that a folder of notes names.

The pool's `engine_options: {engine_args: {faults: FOLDER}}` names the folder. In it,
  kill-HASH    the process ends at that image, without a word (a decoder that crashes)
  hang-HASH    the engine never answers again, from that image on
  oom-HASH     the device runs out of memory at that image
  fail-HASH    the request of that image fails
  once-…       the same, the first time only
  hold-HASH    that image waits for as long as the note is there
  say          a word to put before every text: an engine that would give others
  log          every caption that is finished leaves its image's hash there
HASH is `hash_of` the decoded image.
"""

import asyncio
import hashlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, Engine, EngineDead, EngineOptions
from lotlip_data.captioners.models.base import Captioner
from lotlip_data.captioners.registry import get_default, get_kind


def hash_of(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


class Faulty(Captioner):
    template = "{prompt}"

    def load(self, config: CaptionerConfig, engine: str, resources: EngineOptions) -> Engine:
        options = dict(resources.engine_args)
        faults = Path(options.pop("faults"))
        kind = get_default(config.model).kind
        real = get_kind(kind).load(config.replace(kind=kind), engine, resources.replace(engine_args=options))
        return FaultyEngine(real, faults)


class FaultyEngine:
    def __init__(self, real: Engine, faults: Path) -> None:
        self._real, self._faults = real, faults
        self.window, self.burst = real.window, real.burst
        self._hung = False

    def prepare(self, image: Image.Image) -> tuple[str, Any]:
        return hash_of(image), self._real.prepare(image)

    async def caption(self, prepared: tuple[str, Any]) -> Caption:
        name, ready = prepared
        while (self._faults / f"hold-{name}").exists():
            await asyncio.sleep(0.05)
        if self._told("hang", name) or self._hung:
            self._hung = True
            await asyncio.sleep(10_000)
        if self._told("kill", name):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._told("oom", name):
            raise EngineDead("not even one image fits in memory: CUDA out of memory")
        if self._told("fail", name):
            raise CaptionError("the request failed")
        caption = await self._real.caption(ready)
        with open(self._faults / "log", "a") as log:
            log.write(f"{name}\n")
        say = self._faults / "say"
        return replace(caption, text=say.read_text() + caption.text) if say.exists() else caption

    def close(self) -> None:
        self._real.close()

    def _told(self, fault: str, name: str) -> bool:
        once = self._faults / f"once-{fault}-{name}"
        try:
            once.unlink()
        except FileNotFoundError:
            return (self._faults / f"{fault}-{name}").exists()
        return True
