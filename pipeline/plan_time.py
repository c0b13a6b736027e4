"""How fast a captioner is on this machine, measured with the engine, options and threads that an actor of its has."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from lotlip_data.captioners.base import CaptionError, Engine, load_engine
from lotlip_data.captioners.registry import get_kind
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.choice import Chosen
from lotlip_data.pipeline.tasks import brief
from lotlip_data.world.scenes import render, sample_scene

WARM_UP = 8
"""Images captioned before the clock runs."""
FAILURES = (CaptionError, ValueError, TypeError, ImportError, OSError, RuntimeError)
"""What engines raise that do not load, or do not caption a plain image."""


@dataclass(frozen=True)
class Speed:
    """Of one actor. source: where it is from, for people.

    images_per_s: None where nothing is known that it could follow from. on_cpu: it was measured without a GPU.
    """

    images_per_s: float | None
    source: str
    on_cpu: bool = False


def timed(one: Chosen, count: int) -> Speed:
    """The speed with `count` scenes of 512 pixels, after a warm-up. Raises UserError where it does not caption here."""
    import torch

    images = [render(sample_scene(seed), 512) for seed in range(count)]
    needs_gpu = get_kind(one.config.kind).needs_gpu
    gpu = needs_gpu and torch.cuda.is_available()
    with _threads(one.pool.num_cpus) as threads:
        try:
            engine = load_engine(one.config, one.pool.engine, **one.pool.engine_options)
            try:
                seconds = asyncio.run(_captions(engine, one.pool.concurrency or engine.window, images))
            finally:
                engine.close()
        except FAILURES as error:
            raise UserError(
                f"--time: {one.config.name} does not caption on this machine; give --speed {one.config.name}=IMAGES "
                f"in its place: {brief(error)}"
            ) from None
    device = f"on {torch.cuda.get_device_name()}" if gpu else f"on the CPU with OMP_NUM_THREADS={threads}"
    source = f"measured with {count} images {device if needs_gpu else 'at its endpoint'}"
    return Speed(count / seconds, source, on_cpu=not gpu)


async def _captions(engine: Engine, window: int, images: list[Image.Image]) -> float:
    """Seconds that the images take, `window` of them in flight."""
    places = asyncio.Semaphore(window)

    async def caption(image: Image.Image) -> None:
        async with places:
            await engine.caption(await asyncio.to_thread(engine.prepare, image))

    await asyncio.gather(*map(caption, images[:WARM_UP]))
    began = time.perf_counter()
    await asyncio.gather(*map(caption, images))
    return time.perf_counter() - began


@contextlib.contextmanager
def _threads(num_cpus: float) -> Iterator[int]:
    """As many threads as Ray gives an actor: its CPUs, unless the environment says otherwise; also to processes."""
    import torch

    before, given = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    threads = int(given) if given else max(1, int(num_cpus))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)
        if given is None:
            del os.environ["OMP_NUM_THREADS"]
