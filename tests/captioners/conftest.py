import asyncio
import io

import pytest
import torch
from PIL import Image

from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from tests.captioners import tiny_checkpoints

torch.set_num_threads(1)  # several threads on models this small only wait for each other


@pytest.fixture(scope="session")
def random_llava(tmp_path_factory):
    return str(tiny_checkpoints.write_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="session")
def random_instructblip(tmp_path_factory):
    return str(tiny_checkpoints.write_instructblip(tmp_path_factory.mktemp("instructblip")))


@pytest.fixture(scope="session")
def scenes():
    """`scenes(n)`: pictures of n unseen scenes of the offline world, as they come out of a JPEG of quality 95."""

    def jpeg(seed):
        buffer = io.BytesIO()
        render(sample_scene(seed)).save(buffer, "JPEG", quality=95)
        return Image.open(buffer).convert("RGB")

    return lambda count: [jpeg(seed) for seed in SPLITS["captioner_test"][:count]]


@pytest.fixture(scope="session")
def caption_all():
    """`caption_all(engine, images)`: a Caption or the exception for each, in order; at most `window` at a time."""

    async def run(engine, images):
        window = asyncio.Semaphore(engine.window)

        async def one(image):
            async with window:
                return await engine.caption(await asyncio.to_thread(engine.prepare, image))

        return await asyncio.gather(*map(one, images), return_exceptions=True)

    with asyncio.Runner() as runner:  # one event loop for all, as vLLM's engine is bound to that of its first call
        yield lambda engine, images: runner.run(run(engine, images))
