"""Precision and recall of captions of synthetic scenes, whose content is known exactly.

lotlip-data synthetic accuracy tiny-llava --scenes 500
"""

import asyncio
import io
from collections.abc import Iterable

from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, Engine
from lotlip_data.captioners.registry import load_engine
from lotlip_data.synthetic.caption_facts import FactScore
from lotlip_data.synthetic.scenes import SPLITS, Scene, render, sample_scene


def accuracy(config: CaptionerConfig, scenes: int, engine: str = "auto") -> FactScore:
    """Precision and recall of the (colour, shape, size, place) facts in captions of unseen scenes.

    The images are JPEG files, as downloaded ones are, and the engine is that of a run.

    Args:
        config: The captioner.
        scenes: Number of scenes.
        engine: As for `load_engine`.
    """
    unseen = [sample_scene(seed) for seed in SPLITS["captioner_test"][:scenes]]
    captions = asyncio.run(_caption_all(load_engine(config, engine), unseen))
    return score(zip((caption.text for caption in captions), unseen, strict=True))


def score(texts: Iterable[tuple[str, Scene]]) -> FactScore:
    """Compare the facts of each text with those of its scene."""
    total = FactScore()
    for text, scene in texts:
        total.add(text, scene)
    return total


async def _caption_all(engine: Engine, scenes: Iterable[Scene]) -> list[Caption]:
    """The captions in the order of the scenes, `engine.window` of them at a time."""
    window = asyncio.Semaphore(engine.window)

    async def caption(scene: Scene) -> Caption:
        async with window:
            return await engine.caption(engine.prepare(_as_downloaded(render(scene))))

    try:
        return await asyncio.gather(*map(caption, scenes))
    finally:
        engine.close()


def _as_downloaded(image: Image.Image) -> Image.Image:
    """The image after a JPEG encoding."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return Image.open(buffer).convert("RGB")
