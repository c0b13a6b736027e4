"""What captioning will take: tokens, GPU-hours, money and days; every number with what it follows from.

GPU-hours = images / (images a second of an actor) / 3600 × GPUs of an actor
days      = GPU-hours of all captioners / GPUs of the cluster / 24
reckoned images a second = GPUs × TFLOP/s × share / (2 × parameters × (image + prompt + caption tokens))
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from lotlip_data.captioners.sizing import CAPTION_TOKENS, Sizes, sequences, sizes_of
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import ledger
from lotlip_data.pipeline.choice import Chosen
from lotlip_data.pipeline.status import status

CAPTION_BYTES = 500
"""Of a caption in its Parquet shard, about: 136 tokens are some 650 letters, which compress."""


@dataclass(frozen=True)
class Hardware:
    """What is assumed of the cluster. `tflops` and `share` serve where no speed was measured or given."""

    gpus: int = 8
    gpu_gib: float = 79.1
    tflops: float = 312.0
    share: float = 0.3
    """Of the GPU's peak that an engine reaches: an assumption, of the order of what is reported for 7B models."""
    price: float | None = None
    """Of one GPU for an hour."""


@dataclass(frozen=True)
class CaptionerCost:
    """Of one captioner. Numbers are None where nothing is known that they could follow from."""

    name: str
    images: int
    """Left to caption."""
    done: int
    tokens: int
    images_per_s: float | None
    """Of one actor."""
    speed: str
    """What that follows from."""
    gpus: float
    """Of an actor."""
    gpu_hours: float | None
    money: float | None
    sequences: int | None
    """Captions that fit in a GPU's memory at a time."""
    caption_bytes: int


@dataclass(frozen=True)
class CostPlan:
    """Of all captioners."""

    captioners: list[CaptionerCost]
    gpu_hours: float | None
    money: float | None
    days: float | None
    assumes: list[str]

    def figures(self) -> dict[str, Any]:
        return asdict(self)


def plan_cost(
    images: int,
    chosen: Sequence[Chosen],
    hardware: Hardware,
    speeds: Mapping[str, tuple[float, str]],
    run: Run | None = None,
) -> CostPlan:
    """What is left for `images` images, or for those of `run`, whose ledger tells what is done, how long, how fast.

    speeds: images a second of an actor by captioner, and where they are from; they go before the ledger's.
    """
    found = status(run) if run else None
    images = found["images"] if found and found["images"] else images
    costs = [_cost(one, images, hardware, speeds.get(one.config.name), run, found) for one in chosen]
    hours = [cost.gpu_hours for cost in costs]
    total = None if None in hours else sum(hour for hour in hours if hour is not None)
    assumes = [f"captions of {CAPTION_TOKENS} tokens where none are counted yet, of {CAPTION_BYTES} bytes as stored"]
    if any(cost.speed.startswith("reckoned") for cost in costs):
        assumes.append(
            f"reckoned speeds: GPUs of {hardware.tflops:g} TFLOP/s used to {hardware.share:.0%}, 2 FLOP a parameter "
            "and token; measure yours with --time, or give --speed"
        )
    assumes.append("starts of engines and work that is lost to kills are not in the hours")
    if hardware.price is not None:
        assumes.append(f"{hardware.price:g} for an hour of a GPU")
    assumes.append(f"all {hardware.gpus} GPUs busy from the first to the last caption")
    return CostPlan(
        costs,
        total,
        None if total is None or hardware.price is None else total * hardware.price,
        None if total is None else total / hardware.gpus / 24,
        assumes,
    )


def _cost(
    one: Chosen,
    images: int,
    hardware: Hardware,
    given: tuple[float, str] | None,
    run: Run | None,
    found: dict[str, Any] | None,
) -> CaptionerCost:
    name = one.config.name
    counts = found["captioners"].get(name) if found else None
    done = counts["done"] if counts else 0
    per_caption = counts["tokens"] / done if counts and done and counts["tokens"] else CAPTION_TOKENS
    sizes = sizes_of(one.config)
    gpus = one.pool.num_gpus if one.pool.num_gpus is not None else float(one.config.tensor_parallel_size)
    speed, source = given or _speed(name, sizes, hardware, gpus, per_caption, run)
    left = max(0, images - done)
    hours = None if speed is None else left / speed / 3600 * gpus
    memory = hardware.gpu_gib * one.config.tensor_parallel_size
    return CaptionerCost(
        name=name,
        images=left,
        done=done,
        tokens=round(left * per_caption),
        images_per_s=speed,
        speed=source,
        gpus=gpus,
        gpu_hours=hours,
        money=None if hours is None or hardware.price is None else hours * hardware.price,
        sequences=None if sizes is None else sequences(sizes, memory, 0.9),
        caption_bytes=left * CAPTION_BYTES,
    )


def _speed(
    name: str, sizes: Sizes | None, hardware: Hardware, gpus: float, caption: float, run: Run | None
) -> tuple[float | None, str]:
    """Images a second of an actor: the ledger's, else reckoned from the model's size."""
    tallies = list(ledger.recorded(run.caption_ledger(name)).values()) if run else []
    if tallies:
        seconds = sum(tally.seconds for tally in tallies)
        return sum(tally.rows for tally in tallies) / seconds, f"the run's {len(tallies)} committed shards"
    if sizes is None:
        return None, "unknown: nothing is known of the model; give --speed"
    return reckoned(sizes, gpus or 1, hardware, caption), "reckoned from the model's size"


def reckoned(sizes: Sizes, gpus: float, hardware: Hardware, caption: float = CAPTION_TOKENS) -> float:
    """Images a second of an actor by arithmetic alone: two operations a parameter and token."""
    flops = 2 * sizes.parameters * (sizes.image_tokens + sizes.prompt_tokens + caption)
    return gpus * hardware.tflops * 1e12 * hardware.share / flops


def timed(one: Chosen, count: int) -> float:
    """Images a second that the captioner writes in this process: `count` scenes of 512 pixels, after a warm-up."""
    from lotlip_data.captioners.base import load_engine
    from lotlip_data.world.scenes import render, sample_scene

    images = [render(sample_scene(seed), 512) for seed in range(count)]
    engine = load_engine(one.config, one.pool.engine)

    async def caption(image: Image.Image) -> None:
        await engine.caption(await asyncio.to_thread(engine.prepare, image))

    async def captions() -> float:
        await asyncio.gather(*map(caption, images[:8]))
        began = time.perf_counter()
        await asyncio.gather(*map(caption, images))
        return count / (time.perf_counter() - began)

    try:
        return asyncio.run(captions())
    finally:
        engine.close()


def as_lines(plan: CostPlan) -> list[str]:
    """The plan for people."""
    lines = []
    for one in plan.captioners:
        lines.append(
            f"{one.name:12} {one.images:,} images{f' ({one.done:,} are done)' if one.done else ''}, "
            f"{one.tokens:,} tokens, {one.caption_bytes / 1e9:,.1f} GB of captions"
        )
        if one.images_per_s is not None and one.gpu_hours is not None:
            hours = f"{one.gpu_hours:,.1f} GPU-hours" if one.gpus else "no GPU"
            lines.append(
                f"             {one.images_per_s:,.2f} images/s an actor ({one.speed}): {hours}{_money(one.money)}"
            )
        else:
            lines.append(f"             speed {one.speed}")
        if one.sequences is not None:
            lines.append(f"             {one.sequences:,} captions at a time fit in a GPU's memory")
    if plan.gpu_hours is not None and plan.days is not None:
        lines.append(f"captioning   {plan.gpu_hours:,.1f} GPU-hours{_money(plan.money)}, {plan.days:,.2f} days")
    return lines + [f"if           {assumption}" for assumption in plan.assumes]


def _money(amount: float | None) -> str:
    return "" if amount is None else f", costing {amount:,.2f}"
