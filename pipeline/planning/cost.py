"""What captioning will take: tokens, GPU-hours, money and days; every number with what it follows from.

hours of actors = images left / (images a second of an actor) / 3600
GPU-hours       = hours of actors × GPUs of an actor
days            = the longer of: GPU-hours of all captioners / GPUs of the cluster, and hours of a captioner's actors /
                  as many actors as it may have at a time, never more than shards; / 24

How many captions an actor's GPUs have room for, by the captioner's pool.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lotlip_data.captioners.gpu_memory import CAPTION_TOKENS, WORKING_GIB, Sizes, sequences, sizes_of
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.planning import throughput
from lotlip_data.pipeline.planning.storage import images_of, in_bytes
from lotlip_data.pipeline.planning.throughput import Hardware, Speed
from lotlip_data.pipeline.recaptioning.config import CaptionerJob, gpus_of_an_actor
from lotlip_data.pipeline.reporting.status import status

CAPTION_BYTES = 500
"""Of a caption in its Parquet shard, about: 136 tokens are some 650 letters, which compress."""


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
    actors: int
    """That work at a time, at most."""
    actor_hours: float | None
    gpu_hours: float | None
    money: float | None
    """Of its GPUs; None where it has none."""
    sequences: int | None
    """Captions that fit at a time in the GPU memory of an actor; None where no vLLM of ours has any."""
    caption_bytes: int
    assumes: list[str]


@dataclass(frozen=True)
class CostPlan:
    """Of all captioners."""

    captioners: list[CaptionerCost]
    gpu_hours: float | None
    money: float | None
    """Of the GPUs; None where there are none."""
    days: float | None
    assumes: list[str]
    """Each captioner's own, and what holds of all."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_cost(
    images: int,
    chosen: Sequence[CaptionerJob],
    hardware: Hardware,
    speeds: Mapping[str, Speed],
    run: Run | None = None,
    shards: int | None = None,
) -> CostPlan:
    """What is left for `images` images, or for those of `run`, whose ledger tells what is done, how long, how fast.

    speeds: by captioner; they go before the ledger's. shards: that the images are cut into, where no run says it; None
    bounds no actors. Raises UserError for an actor larger than the cluster.
    """
    found = status(run) if run else None
    images, unfetched = (images_of(run) if run else None) or (images, "")
    costs = [_cost(one, images, shards, hardware, speeds.get(one.config.name), run, found) for one in chosen]
    known = [cost.gpu_hours for cost in costs if cost.gpu_hours is not None]
    hours = sum(known) if len(known) == len(costs) else None
    money = [cost.money for cost in costs if cost.money is not None]
    assumes = [f"{cost.name}: {line}" for cost in costs for line in cost.assumes]
    return CostPlan(
        captioners=costs,
        gpu_hours=hours,
        money=sum(money) if hours is not None and money else None,
        days=_days(costs, hardware.gpus),
        assumes=[*filter(None, [unfetched]), *assumes, *_of_all(costs, hardware)],
    )


def _cost(
    one: CaptionerJob,
    images: int,
    shards: int | None,
    hardware: Hardware,
    given: Speed | None,
    run: Run | None,
    found: dict[str, Any] | None,
) -> CaptionerCost:
    name, sizes = one.config.name, sizes_of(one.config)
    done, tokens = _done(name, found)
    counted = tokens / done if done else 0
    caption = counted or CAPTION_TOKENS
    gpus = gpus_of_an_actor(one.config, one.pool, hardware.gpus)
    speed = given or (throughput.speeds_of_run(one, run) if run else None)
    speed = speed or throughput.of_size(one, sizes, hardware, gpus, caption)
    gpus = 0.0 if speed.on_cpu else gpus
    actors, why = _actors_of(one, hardware, gpus, _shards_left(name, shards, found))
    left = max(0, images - done)
    hours = None if speed.images_per_s is None else left / speed.images_per_s / 3600
    gpu_hours = None if hours is None else hours * gpus
    memory = concurrent_captions(one, sizes, gpus, hardware.gpu_gib, caption) if sizes else None
    assumes = [
        _of_tokens(caption, bool(counted), sizes),
        f"{actors} actor{'' if actors == 1 else 's'} at a time, with {f'{gpus:g}' if gpus else 'no'} GPU each{why}",
        *_of_gpus(one, gpus),
        *([memory[1]] if memory else []),
    ]
    return CaptionerCost(
        name=name,
        images=left,
        done=done,
        tokens=round(left * caption),
        images_per_s=speed.images_per_s,
        speed=speed.source,
        gpus=gpus,
        actors=actors,
        actor_hours=hours,
        gpu_hours=gpu_hours,
        money=gpu_hours * hardware.price if gpu_hours is not None and gpus and hardware.price is not None else None,
        sequences=memory[0] if memory else None,
        caption_bytes=left * CAPTION_BYTES,
        assumes=assumes,
    )


def _done(name: str, found: dict[str, Any] | None) -> tuple[int, int]:
    """Images that the run has captions of, and their tokens."""
    counts = found["captioners"].get(name) if found else None
    return (counts["done"], counts["tokens"]) if counts else (0, 0)


def _shards_left(name: str, shards: int | None, found: dict[str, Any] | None) -> int | None:
    """Those that the captioner has yet to do: the run's, once its lists are cut, else all `shards`."""
    if found is None or found["shards"] is None:
        return shards
    return max(0, found["shards"] - found["captioned"].get(name, 0))


def _actors_of(one: CaptionerJob, hardware: Hardware, gpus: float, shards: int | None) -> tuple[int, str]:
    """That work at a time: as many as the pool asks for, the GPUs are there for, and shards; and what is to be said."""
    room = int(hardware.gpus / gpus) if gpus else None
    if room == 0:
        raise UserError(f"--gpus {hardware.gpus}: an actor of {one.config.name} takes {gpus:g}; give as many at least")
    wanted = max(one.pool.min_actors, one.pool.max_actors or room or 1)
    most = min(wanted, room or wanted)
    if not shards or shards >= most:
        return most, ""
    left = "1 is left" if shards == 1 else f"{shards:,} are left"
    smaller = f"smaller ones (`samples_per_shard`) would occupy up to {most:,}"
    return shards, f": an actor needs a shard of its own, of which {left}; {smaller}"


def _of_tokens(caption: float, counted: bool, sizes: Sizes | None) -> str:
    before = f", behind {sizes.image_tokens} of the image and {sizes.prompt_tokens} of the prompt" if sizes else ""
    return f"captions of {caption:,.4g} tokens ({'as those that are done' if counted else 'assumed'}){before}"


def _of_gpus(one: CaptionerJob, gpus: float) -> list[str]:
    """What is to be said of those of an actor."""
    if not (idle := throughput.idle_gpus(one, gpus)):
        return []
    return [
        f"{idle:g} of the {gpus:g} GPUs of an actor (`num_gpus`) {'idles' if idle == 1 else 'idle'}, reserved and "
        f"paid for: the model is on {one.config.tensor_parallel_size} (`tensor_parallel_size`)"
    ]


def _days(costs: Sequence[CaptionerCost], gpus: int) -> float | None:
    """Of which none is shorter: all GPUs at all the work, or one captioner's actors at theirs. None: not known."""
    known = [(cost.actor_hours, cost) for cost in costs if cost.actor_hours is not None]
    if len(known) < len(costs):
        return None
    taken = sum(hours * cost.gpus for hours, cost in known)
    return max([taken / gpus if gpus else 0.0, *(hours / cost.actors for hours, cost in known)]) / 24


def _of_all(costs: Sequence[CaptionerCost], hardware: Hardware) -> list[str]:
    """What is assumed of all captioners."""
    lines = [
        "hours, money and days are of captioning alone: not of download, dataset and training, nor of starts of "
        "engines and work that is lost to kills",
        f"{hardware.gpus} GPUs, busy as long as there are actors for them, which share the images evenly; captioners "
        "without a GPU work beside them",
        f"{CAPTION_BYTES} bytes of a caption as stored",
    ]
    if any(cost.speed.startswith("reckoned") for cost in costs):
        lines.append(
            f"reckoned speeds: GPUs of {hardware.tflops:g} TFLOP/s used to {hardware.mfu:.3g} of it, 2 FLOP a "
            "parameter and token; measure yours with --time, or give --speed"
        )
    if any(cost.speed.startswith("the run's") for cost in costs):
        lines.append("the run's speeds: its actors are to be what they were, with the GPUs that their pools ask for")
    if hardware.price is not None:
        lines.append(f"{hardware.price:g} for an hour of a GPU; other machines, and what an endpoint asks, not priced")
    return lines


def format_text(plan: CostPlan) -> list[str]:
    """The plan for people."""
    lines = []
    for one in plan.captioners:
        done = f" ({one.done:,} are done)" if one.done else ""
        stored = f"{in_bytes(one.caption_bytes)} of captions"
        lines.append(f"{one.name:12} {one.images:,} images{done}, {one.tokens:,} tokens, {stored}")
        if one.images_per_s is None or one.actor_hours is None or one.gpu_hours is None:
            lines.append(f"             speed {one.speed}")
        else:
            rate = f"{one.images_per_s:,.0f}" if one.images_per_s >= 100 else f"{one.images_per_s:.3g}"
            pace = f"{rate} images/s an actor ({one.speed})"
            kind, hours = ("GPU-hours", one.gpu_hours) if one.gpus else ("hours without a GPU", one.actor_hours)
            lines.append(f"             {pace}: {_amount(hours)} {kind}{_money(one.money)}")
        if one.sequences is not None:
            lines.append(f"             {one.sequences:,} captions at a time fit in the GPU memory of an actor")
    if plan.gpu_hours is None or plan.days is None:
        lines.append("captioning   hours and days unknown, as a speed is")
    else:
        lines.append(f"captioning   {_amount(plan.gpu_hours)} GPU-hours{_money(plan.money)}, {_amount(plan.days)} days")
    return lines + [f"if           {assumption}" for assumption in plan.assumes]


def _amount(number: float) -> str:
    return "less than 0.01" if 0 < number < 0.01 else f"{number:,.2f}"


def _money(amount: float | None) -> str:
    return "" if amount is None else f", costing {amount:,.2f}"


def concurrent_captions(
    one: CaptionerJob, sizes: Sizes, gpus: float, gpu_gib: float, caption: float
) -> tuple[int, str] | None:
    """Captions of so many tokens, and what their number assumes. None where no vLLM of ours has a GPU.

    gpus: of an actor. One that has a part of a GPU may use no larger part of its memory, whatever
    `gpu_memory_utilization` is: others have the rest.
    """
    if not gpus or one.pool.engine == "transformers":
        return None
    given, spread = one.pool.engine_options, one.config.tensor_parallel_size
    share = min(given.gpu_memory_utilization, gpus / spread)
    fit = sequences(sizes, gpu_gib, share, spread, given.kv_cache_gib, caption)
    room = f"a cache of {spread} × {given.kv_cache_gib or 0:g} GiB (kv_cache_gib)"
    if given.kv_cache_gib is None:
        why = "gpu_memory_utilization" if share == given.gpu_memory_utilization else "num_gpus leaves no more"
        room = (
            f"{spread} × ({share:g} ({why}) of {gpu_gib:g} GiB − {WORKING_GIB:g} GiB of working memory) "
            f"− {sizes.weights_gib:.1f} GiB of weights in 16 bit"
        )
    each = (
        f"{sizes.kv_bytes_a_token / 2**20:.3g} MiB of cache a token in 16 bit, {sizes.tokens(caption):,.0f} tokens each"
    )
    return fit, f"memory: {room}; {each}"
