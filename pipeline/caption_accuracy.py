"""How true captions are, in the offline world, where what there is to see is known.

lotlip-data world accuracy tiny-llava --scenes 500
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
    """Precision and recall of the (colour, shape, size, place) facts in the captions of `scenes` unseen scenes.

    The pictures go through JPEG, as fetched ones do, and through the same engine as a run's images.
    """
    unseen = [sample_scene(seed) for seed in SPLITS["captioner_test"][:scenes]]
    captions = asyncio.run(_caption_all(load_engine(config, engine), unseen))
    return score(zip((caption.text for caption in captions), unseen, strict=True))


def score(texts: Iterable[tuple[str, Scene]]) -> FactScore:
    """The facts of each text held against those of its scene."""
    total = FactScore()
    for text, scene in texts:
        total.add(text, scene)
    return total


async def _caption_all(engine: Engine, scenes: Iterable[Scene]) -> list[Caption]:
    window = asyncio.Semaphore(engine.window)

    async def one(scene: Scene) -> Caption:
        async with window:
            return await engine.caption(engine.prepare(_as_fetched(render(scene))))

    try:
        return await asyncio.gather(*(one(scene) for scene in scenes))
    finally:
        engine.close()


def _as_fetched(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return Image.open(buffer).convert("RGB")
