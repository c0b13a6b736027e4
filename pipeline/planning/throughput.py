"""The speed of one actor of a captioner: measured on this machine, taken from a run's ledger, or estimated.

estimated images per second = GPUs × peak FLOP/s × MFU / (2 × parameters × (image + prompt + caption tokens))

A captioner with several texts has a prompt and a caption for each. vLLM reads the image once for all of them.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from lotlip_data.captioners.base import CaptionerConfig, CaptionError, Engine, prepare_texts
from lotlip_data.captioners.gpu_memory import PUBLISHED_SIZES
from lotlip_data.captioners.registry import get_kind, load_engine
from lotlip_data.captioners.sizing import CAPTION_TOKENS, ModelSizes
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.planning.hardware import Hardware
from lotlip_data.pipeline.recaptioning.config import CaptionerJob, engine_options
from lotlip_data.pipeline.recaptioning.prompts import PromptFiller
from lotlip_data.synthetic.caption_writers import raw_text
from lotlip_data.synthetic.scenes import Scene, render, sample_scene

WARM_UP_IMAGES = 8
"""Images captioned before the measurement starts."""
SCENE_PIXELS = 512
"""Width and height of the images of a measurement."""
PREPARE_SECONDS = 0.01
"""Time of one CPU to decode, resize and normalise an image. It bounds the estimated speed of small models."""
ENGINE_ERRORS = (CaptionError, ValueError, TypeError, ImportError, OSError, RuntimeError)
"""What an engine raises if it cannot load or cannot caption an ordinary image."""


@dataclass(frozen=True)
class Speed:
    """The speed of one actor."""

    images_per_s: float | None
    """None if it is unknown."""
    source: str
    """Where the speed comes from, as text for the user."""
    on_cpu: bool = False
    """Whether it was measured without a GPU."""
    origin: Literal["given", "run", "estimate", "unknown"] = "given"
    """Given or measured by the user, taken from a run's ledger, or estimated from the model's size."""


def measure_speed(job: CaptionerJob, count: int) -> Speed:
    """Measure a captioner on this machine, with the engine, options and threads of its actors.

    Args:
        job: The captioner with its pool.
        count: Number of synthetic images to caption, each with all texts, after the warm-up.

    Raises:
        UserError: The captioner does not load or caption on this machine.
    """
    import torch

    scenes = [sample_scene(seed) for seed in range(count)]
    needs_gpu = get_kind(job.config.kind).needs_gpu
    has_gpu = needs_gpu and torch.cuda.is_available()
    if has_gpu and job.pool.num_gpus == 0:
        raise UserError(
            f"--time: the actors of {job.config.name} use no GPU (`num_gpus: 0`), and an engine here would use that of "
            "this machine; repeat the command with CUDA_VISIBLE_DEVICES= (empty)"
        )
    with _actor_threads(job.pool.num_cpus, has_gpu) as threads:
        try:
            options = engine_options(job.config, job.pool, job.pool.num_gpus or 0.0)
            engine = load_engine(job.config, job.pool.engine, **options.explicit)
            try:
                window = job.pool.concurrency or engine.window
                seconds = asyncio.run(_time_captions(engine, job.config, window, scenes))
            finally:
                engine.close()
        except ENGINE_ERRORS as error:
            name = job.config.name
            raise UserError(
                f"--time: {name} cannot caption on this machine; use --speed {name}=IMAGES instead: {one_line(error)}"
            ) from None
    device = f"on {torch.cuda.get_device_name()}" if has_gpu else f"on the CPU with OMP_NUM_THREADS={threads}"
    source = f"measured with {count} images {device if needs_gpu else 'at its endpoint'}"
    return Speed(count / seconds, source, on_cpu=not has_gpu)


async def _time_captions(engine: Engine, config: CaptionerConfig, window: int, scenes: list[Scene]) -> float:
    """Return the seconds that all texts of the scenes take, with up to `window` of these in progress."""
    texts, samples = config.texts, [(render(scene, SCENE_PIXELS), _meta(scene)) for scene in scenes]
    slots, filler = asyncio.Semaphore(max(1, window // len(texts))), PromptFiller(texts, engine)

    def prepare(image: Image.Image, meta: dict[str, Any]) -> list[Any]:
        return prepare_texts(engine, config, image, [filler.request(text, meta) for text in texts])

    async def caption(sample: tuple[Image.Image, dict[str, Any]]) -> None:
        async with slots:
            await asyncio.gather(*map(engine.caption, await asyncio.to_thread(prepare, *sample)))

    await asyncio.gather(*map(caption, samples[:WARM_UP_IMAGES]))
    start = time.perf_counter()
    await asyncio.gather(*map(caption, samples))
    return time.perf_counter() - start


def _meta(scene: Scene) -> dict[str, Any]:
    """The columns of the sample of a scene, for prompts that hold some."""
    sizes = dict.fromkeys(("width", "height", "original_width", "original_height"), SCENE_PIXELS)
    return {"texts": [raw_text(scene)], "sources": ["synthetic"], "url": "http://images.test/scene.jpg", **sizes}


@contextlib.contextmanager
def _actor_threads(num_cpus: float, has_gpu: bool) -> Iterator[int]:
    """Use as many threads as an actor has: one with a GPU, else OMP_NUM_THREADS, else the number of its CPUs.

    Subprocesses inherit the setting.
    """
    import torch

    torch_threads, environment = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    threads = 1 if has_gpu else int(environment) if environment else max(1, int(num_cpus))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(torch_threads)
        if environment is None:
            del os.environ["OMP_NUM_THREADS"]


def run_speed(job: CaptionerJob, run: Run) -> Speed | None:
    """Return the speed that a run's ledger records for a captioner, or None if it records none.

    A text without a record counts as long as the captioner's other texts.
    """
    names = [text.name for text in job.config.texts]
    done = [ledger.throughput(ledger.recorded(run.caption_ledger(name)).values()) for name in names]
    seconds = [1 / text.images_per_s for text in done if text.images_per_s]
    if not seconds:
        return None
    texts = "" if len(seconds) == len(names) else f" with {len(seconds)} of {len(names)} texts"
    source = f"measured in the run, {max(text.images for text in done):,} images{texts}"
    on_cpu = not any(text.gpu_seconds for text in done)
    return Speed(len(seconds) / sum(seconds) / len(names), source, on_cpu=on_cpu, origin="run")


def estimate_speed(
    job: CaptionerJob, sizes: ModelSizes | None, hardware: Hardware, gpus: float, caption_tokens: Sequence[float]
) -> Speed:
    """Estimate a speed from the model's size; it is unknown for actors without a GPU and for models of unknown size.

    Args:
        job: The captioner with its pool.
        sizes: The sizes of its model, if they are known.
        hardware: The cluster.
        gpus: GPUs per actor.
        caption_tokens: By text, the mean length of a caption.
    """
    if sizes is None or not gpus:
        reason = "the size of the model is unknown" if gpus else "actors without a GPU cannot be estimated"
        return Speed(None, f"unknown: {reason}; use --speed", origin="unknown")
    used = gpus - idle_gpus(job, gpus)
    images_per_s = estimate_images_per_s(sizes, used, hardware, caption_tokens, shares_image(job))
    most = job.pool.num_cpus / PREPARE_SECONDS
    if images_per_s > most:
        return Speed(most, "estimated: as fast as its CPUs prepare images", origin="estimate")
    return Speed(images_per_s, f"estimated for GPUs of {hardware.tflops:g} TFLOP/s", origin="estimate")


def idle_gpus(job: CaptionerJob, gpus: float) -> float:
    """Return the number of an actor's GPUs that its model does not use: all beyond `tensor_parallel_size`.

    Kinds of captioners whose architecture is not known count as using all their GPUs.
    """
    return max(0.0, gpus - job.config.tensor_parallel_size) if job.config.kind in PUBLISHED_SIZES else 0.0


def shares_image(job: CaptionerJob) -> bool:
    """Whether the engine computes the tokens of an image once for all its texts, as vLLM does."""
    return job.pool.engine != "transformers"


def estimate_images_per_s(
    sizes: ModelSizes,
    gpus: float,
    hardware: Hardware,
    caption_tokens: Sequence[float] = (CAPTION_TOKENS,),
    is_image_shared: bool = True,
) -> float:
    """Return the estimated images per second of one actor, at two operations per parameter and token.

    Args:
        sizes: The sizes of the model.
        gpus: GPUs per actor.
        hardware: The cluster.
        caption_tokens: By text, the mean length of a caption.
        is_image_shared: Whether the tokens of an image are computed once for all texts.
    """
    tokens = sum(map(sizes.sequence_tokens, caption_tokens))
    if is_image_shared:
        tokens -= (len(caption_tokens) - 1) * sizes.image_tokens
    operations_per_image = 2 * sizes.parameters * tokens
    return gpus * hardware.tflops * 1e12 * hardware.mfu / operations_per_image
