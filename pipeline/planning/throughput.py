"""How fast a captioner is on this machine, measured with the engine, options and threads that an actor of its has.

How fast an actor is where nobody measured or gave it: as the run's were, else by arithmetic alone.

reckoned images a second = GPUs × TFLOP/s × MFU / (2 × parameters × (image + prompt + caption tokens))

What is assumed of the cluster that captions. The defaults are those of the command line.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from lotlip_data.captioners.base import CaptionError, Engine
from lotlip_data.captioners.gpu_memory import CAPTION_TOKENS, MODELS, Sizes
from lotlip_data.captioners.registry import get_kind, load_engine
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.recaptioning.config import CaptionerJob
from lotlip_data.synthetic.scenes import render, sample_scene

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


def measure_speed(one: CaptionerJob, count: int) -> Speed:
    """The speed with `count` scenes of 512 pixels, after a warm-up. Raises UserError where it does not caption here."""
    import torch

    images = [render(sample_scene(seed), 512) for seed in range(count)]
    needs_gpu = get_kind(one.config.kind).needs_gpu
    gpu = needs_gpu and torch.cuda.is_available()
    with _threads(one.pool.num_cpus) as threads:
        try:
            engine = load_engine(one.config, one.pool.engine, **one.pool.engine_options.given)
            try:
                seconds = asyncio.run(_captions(engine, one.pool.concurrency or engine.window, images))
            finally:
                engine.close()
        except FAILURES as error:
            raise UserError(
                f"--time: {one.config.name} does not caption on this machine; give --speed {one.config.name}=IMAGES "
                f"in its place: {one_line(error)}"
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


def speeds_of_run(one: CaptionerJob, run: Run) -> Speed | None:
    """The ledger's; None where it has none."""
    done = ledger.throughput(ledger.recorded(run.caption_ledger(one.config.name)).values())
    if not done.images_per_s:
        return None
    return Speed(done.images_per_s, f"the run's, of {done.images:,} images", on_cpu=not done.gpu_seconds)


@dataclass(frozen=True)
class Hardware:
    """`tflops` and `mfu` serve where no speed was measured or given."""

    gpus: int = 8
    gpu_gib: float = 79.1
    """Memory of a GPU, as torch reports it."""
    tflops: float = 312.0
    """Peak of a GPU in 16 bit."""
    mfu: float = 0.3
    """Model FLOPs utilisation, the share of that peak: assumed, of the order that is reported for 7B models."""
    price: float | None = None
    """Of one GPU for an hour."""

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, fix: str) -> None:
            if not holds:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: {fix}")

        require(0 <= self.gpus <= MOST, "gpus", f"must be 0 to {MOST:,}")
        require(1 <= self.gpu_gib <= MOST, "gpu_gib", f"must be 1 to {MOST:,}")
        require(0.001 <= self.tflops <= MOST, "tflops", f"must be 0.001 to {MOST:,}")
        require(0.001 <= self.mfu <= 1, "mfu", "a share: must be 0.001 to 1")
        require(self.price is None or 0 <= self.price <= MOST, "price", f"must be 0 to {MOST:,}")


def of_size(one: CaptionerJob, sizes: Sizes | None, hardware: Hardware, gpus: float, caption: float) -> Speed:
    """Reckoned; without a number where nothing is known of the model, or an actor has no GPU."""
    if sizes is None or not gpus:
        what = "the model" if gpus else "actors without a GPU"
        return Speed(None, f"unknown: nothing is known of {what}; give --speed")
    used = gpus - idle_gpus(one, gpus)
    return Speed(estimated_speed(sizes, used, hardware, caption), "reckoned from the model's size")


def idle_gpus(one: CaptionerJob, gpus: float) -> float:
    """Of those of an actor: a copy of a model of ours is on `tensor_parallel_size` of them, and never on more."""
    return max(0.0, gpus - one.config.tensor_parallel_size) if one.config.kind in MODELS else 0.0


def estimated_speed(sizes: Sizes, gpus: float, hardware: Hardware, caption: float = CAPTION_TOKENS) -> float:
    """Images a second of an actor by arithmetic alone: two operations a parameter and token."""
    return gpus * hardware.tflops * 1e12 * hardware.mfu / (2 * sizes.parameters * sizes.tokens(caption))


MOST = 1_000_000
