"""An engine that makes three texts of each plain grey image, and shows in each text the image and the prompt.

As a program, this module captions shard 0 with an engine that ends its own process: at some values, as a decoder that
crashes does, or at a write to the storage, as a kill from outside can:
`python -m tests.pipeline.recaptioning.texts_engine RUN PART_SIZE LOG WRITE VALUE…`. WRITE is such as `part 2`, the
second write of a part, or empty. The program appends the name of the text and the value of each finished caption to
LOG.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, EngineDead, TextRequest
from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from tests.pipeline.recaptioning.grey_engine import GreyEngine, caption

PROMPTS = {"long": "Describe", "short": "Name", "tags": {"prompt": "Tag", "max_new_tokens": 48}}
CONFIG = CaptionerConfig.from_dict({"name": "grey", "kind": "llava", "model": "grey", "prompts": PROMPTS})
NAMES = [text.name for text in CONFIG.texts]

Prepared = tuple[int, str, str]
"""An image's value, the name of the text and its prompt."""


class TextsEngine(GreyEngine):
    """Makes several texts of an image from one preprocessing.

    Args:
        poison: Values and pairs of a text's name and a value whose request fails.
        max_requests: Number of requests after which the engine dies; None for never.
    """

    special_texts = frozenset[str]()

    def __init__(self, poison: tuple[Any, ...] = (), max_requests: int | None = None) -> None:
        super().__init__(poison, max_requests)
        self.asked: list[tuple[str, int]] = []
        """The name of the text and the value of all requests, in order."""
        self.prepared: list[int] = []
        """The values of all images that were prepared, in order."""

    def prepare_texts(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[Prepared]:
        value = self.prepare(image)
        self.prepared.append(value)
        return [(value, request.config.name, request.prompt) for request in requests]

    async def caption(self, prepared: Any) -> Caption:
        value, name, prompt = prepared
        self.asked.append((name, value))
        if self.max_requests is not None and len(self.asked) > self.max_requests:
            raise EngineDead("the engine is dead")
        await asyncio.sleep(0.001 * (value % 3))
        if value in self.poison or (name, value) in self.poison:
            raise CaptionError("poison")
        return Caption(f"{prompt} {value}.", "stop", 5)


class EndingEngine(TextsEngine):
    """Ends the process at some values, and logs the name and the value of every finished caption."""

    def __init__(self, log: str, fatal_values: set[int]) -> None:
        super().__init__()
        self.log, self.fatal_values = log, fatal_values

    async def caption(self, prepared: Any) -> Caption:
        value, name, _ = prepared
        if value in self.fatal_values:
            await asyncio.sleep(0.02)
            os._exit(9)
        caption = await super().caption(prepared)
        with open(self.log, "a") as stream:
            stream.write(f"{name} {value}\n")
        return caption


def end_at_write(wanted: str) -> None:
    """End the process before a write to the storage: `log`, `part`, `commit` or `ledger`, with its number from 1."""
    writes, create, replace = Counter[str](), storage.create, storage.replace
    kinds = {"suspects-": "log", ".parts/": "part", ".ledger/": "ledger"}

    def counted(write: Any) -> Any:
        def call(url: str, content: bytes) -> Any:
            kind = next((kind for part, kind in kinds.items() if part in url), "commit")
            writes[kind] += 1
            if f"{kind} {writes[kind]}" == wanted:
                os._exit(9)
            return write(url, content)

        return call

    storage.create, storage.replace = counted(create), counted(replace)


if __name__ == "__main__":
    url, size, log_path, write, *values = sys.argv[1:]
    if write:
        end_at_write(write)
    caption(Run(url), EndingEngine(log_path, set(map(int, values))), 0, config=CONFIG, part_size=int(size))
