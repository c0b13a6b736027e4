import asyncio
import io

import pytest
import torch
from PIL import Image

from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from tests.captioners import tiny_checkpoints

torch.set_num_threads(1)  # with models this small, several threads only wait for each other


@pytest.fixture(scope="session")
def random_llava(tmp_path_factory):
    return str(tiny_checkpoints.write_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="session")
def random_instructblip(tmp_path_factory):
    return str(tiny_checkpoints.write_instructblip(tmp_path_factory.mktemp("instructblip")))


@pytest.fixture(scope="session")
def scenes():
    """`scenes(n)`: images of n unseen synthetic scenes, decoded from JPEGs of quality 95."""

    def jpeg(seed):
        buffer = io.BytesIO()
        render(sample_scene(seed)).save(buffer, "JPEG", quality=95)
        return Image.open(buffer).convert("RGB")

    return lambda count: [jpeg(seed) for seed in SPLITS["captioner_test"][:count]]


@pytest.fixture(scope="session")
def runner():
    """One event loop for all tests: vLLM's engine is bound to that of its first call."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def caption_all(runner):
    """`caption_all(engine, images)`: each image's Caption or exception, in order; at most `window` calls at once."""

    async def run(engine, images):
        window = asyncio.Semaphore(engine.window)

        async def caption(image):
            async with window:
                return await engine.caption(await asyncio.to_thread(engine.prepare, image))

        return await asyncio.gather(*map(caption, images), return_exceptions=True)

    return lambda engine, images: runner.run(run(engine, images))
