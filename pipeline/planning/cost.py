"""What captioning will take: tokens, GPU-hours, money and days, each with the assumptions that it is based on.

    actor-hours = remaining images / (images per second of one actor) / 3600
                  (of a captioner with several texts: the mean over its texts, since they share an actor's time)
    GPU-hours   = actor-hours × GPUs per actor
    days        = max(GPU-hours of all captioners / GPUs of the cluster,
                      actor-hours / concurrent actors, of each captioner) / 24

A captioner runs as many concurrent actors as its pool allows, and never more than there are shards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.gpu_memory import read_model_sizes
from lotlip_data.captioners.presets import licence_of
from lotlip_data.captioners.sizing import CAPTION_TOKENS, WORKING_MEMORY_GIB, ModelSizes, max_sequences
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.wording import count, plural
from lotlip_data.manifests.wording import size as format_bytes
from lotlip_data.pipeline.planning import throughput
from lotlip_data.pipeline.planning.hardware import Hardware
from lotlip_data.pipeline.planning.storage import estimate_images
from lotlip_data.pipeline.planning.throughput import Speed
from lotlip_data.pipeline.recaptioning.config import CaptionerJob, engine_options, gpus_per_actor
from lotlip_data.pipeline.reporting.status import RunStatus, get_status

CAPTION_BYTES = 500
"""Approximate size of a caption in its Parquet shard: 136 tokens are about 650 letters, which compress."""


@dataclass(frozen=True)
class CaptionerCost:
    """The cost of one captioner, as `plan --json` prints it. A number that cannot be estimated is None."""

    name: str
    texts: int
    """Texts that each image gets."""
    licence: str | None
    """Of the model, if it is that of a preset."""
    images: int
    """Images that remain to be captioned: those that lack one of the texts."""
    done: int
    """Images that the run has already captioned, with all texts."""
    tokens: int
    """Tokens of the remaining captions."""
    images_per_s: float | None
    """Of one actor, with all texts."""
    speed: str
    """Where `images_per_s` comes from."""
    gpus: float
    """GPUs per actor."""
    actors: int
    """Maximum number of concurrent actors."""
    actor_hours: float | None
    gpu_hours: float | None
    money: float | None
    """Price of the GPU-hours; None without GPUs."""
    sequences: int | None
    """Captions that fit in the GPU memory of one actor at the same time; None unless vLLM runs on a GPU."""
    caption_bytes: int
    assumes: list[str]


@dataclass(frozen=True)
class CostPlan:
    """The cost of all captioners."""

    captioners: list[CaptionerCost]
    gpu_hours: float | None
    money: float | None
    """Price of the GPU-hours; None without GPUs."""
    days: float | None
    """None if a speed or the number of GPUs is unknown."""
    gpus: int | None
    """GPUs of the cluster, as given."""
    assumes: list[str]
    """The assumptions of each captioner, and those that hold for all."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _TextWork:
    """What one text of a captioner has done and has left."""

    done: int
    """Images captioned."""
    remaining: int
    """Images to caption."""
    caption_tokens: float
    """Mean length of a caption."""
    is_counted: bool
    """Whether this length is the mean of finished captions; otherwise it is assumed."""


@dataclass(frozen=True)
class _Workload:
    """What one captioner has done and has left."""

    texts: tuple[_TextWork, ...]
    shards: int | None
    """Shards to caption; None if their number is unknown."""

    @property
    def done(self) -> int:
        """Images captioned, with all texts."""
        return min(text.done for text in self.texts)

    @property
    def remaining(self) -> int:
        """Images that lack a text."""
        return max(text.remaining for text in self.texts)

    @property
    def captions(self) -> int:
        """Captions that remain, of all texts."""
        return sum(text.remaining for text in self.texts)

    @property
    def tokens(self) -> float:
        """Tokens of the captions that remain."""
        return sum(text.remaining * text.caption_tokens for text in self.texts)

    @property
    def caption_tokens(self) -> tuple[float, ...]:
        """By text, the mean length of a caption."""
        return tuple(text.caption_tokens for text in self.texts)


def plan_cost(
    images: int,
    jobs: Sequence[CaptionerJob],
    hardware: Hardware,
    speeds: Mapping[str, Speed],
    run: Run | None = None,
    shards: int | None = None,
) -> CostPlan:
    """Estimate what the remaining captions take.

    Args:
        images: Number of images; used where `run` does not say how many it will have.
        jobs: The captioners with their pools.
        hardware: The cluster.
        speeds: Known speeds, by captioner. They take precedence over speeds from the run's ledger.
        run: An existing run. Its finished captions and measured speeds are used.
        shards: Number of shards; used where `run` does not have any. None does not limit the number of actors.

    Raises:
        UserError: One actor needs more GPUs than the cluster has.
    """
    status = get_status(run) if run else None
    images, images_assumption = (estimate_images(run) if run else None) or (images, "")
    costs, origins = [], set[str]()
    for job in jobs:
        work = _workload(job, images, shards, status)
        sizes = read_model_sizes(job.config)
        speed = _speed(job, sizes, hardware, speeds, run, work)
        origins.add(speed.origin)
        costs.append(_captioner_cost(job, sizes, hardware, speed, work))
    gpu_hours = [cost.gpu_hours for cost in costs if cost.gpu_hours is not None]
    total_gpu_hours = sum(gpu_hours) if len(gpu_hours) == len(costs) else None
    money = [cost.money for cost in costs if cost.money is not None]
    return CostPlan(
        captioners=costs,
        gpu_hours=total_gpu_hours,
        money=sum(money) if total_gpu_hours is not None and money else None,
        days=_days(costs, hardware.gpus),
        gpus=hardware.gpus,
        assumes=[
            *filter(None, [images_assumption]),
            *(f"{cost.name}: {assumption}" for cost in costs for assumption in cost.assumes),
            *(_common_assumptions(hardware, origins) if costs else []),
        ],
    )


def _workload(job: CaptionerJob, images: int, shards: int | None, status: RunStatus | None) -> _Workload:
    """Return what a captioner has left of the run's images and shards, or of `images` and `shards`."""
    texts = job.config.texts
    if status is not None and status["shards"] is not None:
        shards = max(0, status["shards"] - min(status["captioned"].get(text.name, 0) for text in texts))
    return _Workload(tuple(_text_work(text, images, status) for text in texts), shards)


def _text_work(text: CaptionerConfig, images: int, status: RunStatus | None) -> _TextWork:
    done = tokens = 0
    if status is not None and text.name in status["captioners"]:
        done, tokens = status["captioners"][text.name]["done"], status["captioners"][text.name]["tokens"]
    mean_tokens = tokens / done if done else 0
    assumed = min(CAPTION_TOKENS, text.max_new_tokens)
    return _TextWork(done, max(0, images - done), mean_tokens or assumed, bool(mean_tokens))


def _speed(
    job: CaptionerJob,
    sizes: ModelSizes | None,
    hardware: Hardware,
    speeds: Mapping[str, Speed],
    run: Run | None,
    work: _Workload,
) -> Speed:
    """Return the known speed, the run's, or an estimate, in this order."""
    speed = speeds.get(job.config.name) or (throughput.run_speed(job, run) if run else None)
    gpus = gpus_per_actor(job.config, job.pool, hardware.assumed_gpus)
    return speed or throughput.estimate_speed(job, sizes, hardware, gpus, work.caption_tokens)


def _captioner_cost(
    job: CaptionerJob, sizes: ModelSizes | None, hardware: Hardware, speed: Speed, work: _Workload
) -> CaptionerCost:
    gpus = 0.0 if speed.on_cpu else gpus_per_actor(job.config, job.pool, hardware.assumed_gpus)
    actors, actor_limit = _concurrent_actors(job, hardware, gpus, work.shards)
    passes = work.captions / len(work.texts)
    actor_hours = None if speed.images_per_s is None else passes / speed.images_per_s / 3600
    gpu_hours = None if actor_hours is None else actor_hours * gpus
    memory = concurrent_captions(job, sizes, gpus, hardware.gpu_gib, max(work.caption_tokens)) if sizes else None
    gpus_each = f"{gpus:g}" if gpus else "no"
    is_unlimited = bool(gpus) and hardware.gpus is None and not job.pool.max_actors
    actor_count = "as many actors as there are GPUs for them," if is_unlimited else count(actors, "concurrent actor")
    assumes = [
        _caption_assumption(job, work, sizes),
        f"{actor_count} with {gpus_each} GPU each{actor_limit}",
        *_idle_gpu_assumption(job, gpus),
        *([memory[1]] if memory else []),
    ]
    return CaptionerCost(
        name=job.config.name,
        texts=len(work.texts),
        licence=licence_of(job.config),
        images=work.remaining,
        done=work.done,
        tokens=round(work.tokens),
        images_per_s=speed.images_per_s,
        speed=speed.source,
        gpus=gpus,
        actors=actors,
        actor_hours=actor_hours,
        gpu_hours=gpu_hours,
        money=_gpu_price(gpu_hours, gpus, hardware.price),
        sequences=memory[0] if memory else None,
        caption_bytes=work.captions * CAPTION_BYTES,
        assumes=assumes,
    )


def _gpu_price(gpu_hours: float | None, gpus: float, price: float | None) -> float | None:
    return gpu_hours * price if gpu_hours is not None and gpus and price is not None else None


def _concurrent_actors(job: CaptionerJob, hardware: Hardware, gpus: float, shards: int | None) -> tuple[int, str]:
    """Return the number of concurrent actors, limited by the pool, the GPUs and the shards; and the limit as text."""
    most_on_gpus = int(hardware.gpus / gpus) if gpus and hardware.gpus is not None else None
    if most_on_gpus == 0:
        raise UserError(f"--gpus {hardware.gpus}: one actor of {job.config.name} needs {gpus:g}; use at least as many")
    requested = max(job.pool.min_actors, job.pool.max_actors or most_on_gpus or 1)
    most = min(requested, most_on_gpus or requested)
    if not shards or shards >= most:
        return most, ""
    left = f"{count(shards, 'shard')} {plural(shards, 'is')} left"
    remedy = f"smaller shards (`samples_per_shard`) would occupy up to {most:,} actors"
    return shards, f", because each actor needs its own shard and {left}; {remedy}"


def _caption_assumption(job: CaptionerJob, work: _Workload, sizes: ModelSizes | None) -> str:
    lengths = {(text.caption_tokens, text.is_counted) for text in work.texts}
    if len(lengths) == 1:
        shown = f"{_length(work.texts[0])}"
    else:
        texts = zip(job.config.prompts, work.texts, strict=True)
        shown = ", ".join(f"{_length(text)} of {key!r}" for key, text in texts)
    once = "" if len(work.texts) == 1 else " that all texts share" if throughput.shares_image(job) else " for each text"
    before = f", after {sizes.image_tokens} image tokens{once} and {sizes.prompt_tokens} prompt tokens" if sizes else ""
    return shown + before


def _length(text: _TextWork) -> str:
    origin = "mean of the finished captions" if text.is_counted else "assumed"
    return f"{text.caption_tokens:,.4g} tokens per caption ({origin})"


def _idle_gpu_assumption(job: CaptionerJob, gpus: float) -> list[str]:
    """Return what to say about an actor's GPUs that its model does not use: one line, or none."""
    idle = throughput.idle_gpus(job, gpus)
    if not idle:
        return []
    verb = "is" if idle == 1 else "are"
    return [
        f"{idle:g} of the {gpus:g} GPUs per actor (`num_gpus`) {verb} idle, but reserved and paid for: the model uses "
        f"{job.config.tensor_parallel_size} (`tensor_parallel_size`)"
    ]


def _days(costs: Sequence[CaptionerCost], gpus: int | None) -> float | None:
    """Return the days until all captioners finish, or None if a speed or the number of GPUs is unknown.

    This is the longer of two times: all GPUs working on all captioners, and the slowest captioner's own actors.
    """
    if gpus is None and any(cost.gpus for cost in costs):
        return None
    hours = [(cost.actor_hours, cost) for cost in costs if cost.actor_hours is not None]
    if len(hours) < len(costs):
        return None
    gpu_hours = sum(actor_hours * cost.gpus for actor_hours, cost in hours)
    own_hours = [actor_hours / cost.actors for actor_hours, cost in hours]
    return max([gpu_hours / gpus if gpus else 0.0, *own_hours]) / 24


def _common_assumptions(hardware: Hardware, origins: set[str]) -> list[str]:
    """Return what holds for all captioners.

    Args:
        hardware: The cluster.
        origins: The origins of the captioners' speeds (`Speed.origin`).
    """
    gpus = "GPUs of unknown number" if hardware.gpus is None else count(hardware.gpus, "GPU")
    lines = [
        "hours, cost and days cover captioning only, without download, dataset, training, engine start-up and work "
        "that is lost to kills",
        f"{gpus} that {plural(hardware.gpus or 2, 'is')} busy as long as there are actors for them; the actors of a "
        "captioner share its images evenly; captioners without a GPU run at the same time",
        f"{CAPTION_BYTES} bytes per stored caption",
    ]
    if "estimate" in origins:
        lines.append(
            f"estimated speeds: GPUs with a peak of {hardware.tflops:g} TFLOP/s, a model FLOPs utilisation of "
            f"{hardware.mfu:.3g}, and 2 FLOP per parameter and token; measure with --time, or set --speed"
        )
    if "run" in origins:
        lines.append(
            "speeds measured in the run: the remaining actors are like the previous ones, with the GPUs that their "
            "pools request"
        )
    if hardware.price is not None:
        lines.append(
            f"a price of {hardware.price:g} per GPU-hour; other machines and the fees of endpoints are not included"
        )
    return lines


def format_text(plan: CostPlan, imported: Sequence[str] = ()) -> list[str]:
    """Return the lines that `plan` prints.

    Args:
        plan: The plan.
        imported: The captioners whose captions the lists carry.
    """
    lines = [f"captions     {', '.join(imported)}: the lists carry them, nothing to caption"] if imported else []
    if not plan.captioners:
        return lines or ["captions     the manifest has no captioner (`captioners: []`): nothing to caption"]
    lines += [line for cost in plan.captioners for line in _captioner_lines(cost)]
    if plan.gpu_hours is None:
        return [*lines, "captioning   hours and days unknown, because a speed is unknown"]
    total = f"captioning   {_format_amount(plan.gpu_hours)} GPU-hours{_format_money(plan.money)}"
    if plan.days is None:
        return [*lines, f"{total}; the days depend on the number of GPUs: give --gpus"]
    on = f" on {count(plan.gpus, 'GPU')}" if plan.gpus and plan.gpu_hours else ""
    return [*lines, f"{total}, {_format_amount(plan.days)} days{on}"]


def format_assumptions(plan: CostPlan) -> list[str]:
    """Return the lines that `plan --assumptions` adds."""
    fits = [
        f"{cost.name}: {count(cost.sequences, 'caption')} fit in the GPU memory of one actor at the same time"
        for cost in plan.captioners
        if cost.sequences is not None
    ]
    return [f"assumption   {assumption}" for assumption in [*fits, *plan.assumes]]


def _captioner_lines(cost: CaptionerCost) -> list[str]:
    done = f" ({cost.done:,} done)" if cost.done else ""
    captions = f"{format_bytes(cost.caption_bytes)} of captions"
    images = count(cost.images, "image")
    texts = f" × {cost.texts} texts" if cost.texts > 1 else ""
    lines = [f"{cost.name:12} {images}{texts}{done}, {cost.tokens:,} tokens, {captions}"]
    if cost.images_per_s is None or cost.actor_hours is None or cost.gpu_hours is None:
        lines.append(f"             speed {cost.speed}")
    else:
        rate = f"{cost.images_per_s:,.0f}" if cost.images_per_s >= 100 else f"{cost.images_per_s:.3g}"
        unit, hours = ("GPU-hours", cost.gpu_hours) if cost.gpus else ("hours without a GPU", cost.actor_hours)
        total = f"{_format_amount(hours)} {unit}{_format_money(cost.money)}"
        each = f" with all {cost.texts} texts" if cost.texts > 1 else ""
        lines.append(f"             {rate} images/s per actor{each} ({cost.speed}): {total}")
    if cost.licence:
        lines.append(f"             licence of the model: {cost.licence}")
    return lines


def _format_amount(number: float) -> str:
    return "less than 0.01" if 0 < number < 0.01 else f"{number:,.2f}"


def _format_money(amount: float | None) -> str:
    return "" if amount is None else f", cost {amount:,.2f}"


def _bits(width: float) -> str:
    return f"{8 * width:g}-bit"


def concurrent_captions(
    job: CaptionerJob, sizes: ModelSizes, gpus: float, gpu_gib: float, caption_tokens: float
) -> tuple[int, str] | None:
    """Return the captions that fit in the GPU memory of one actor, and what this number assumes.

    An actor with a fraction of a GPU uses at most the same fraction of vLLM's usual share of its memory, whatever
    `gpu_memory_utilization` is, because other actors use the rest.

    Args:
        job: The captioner with its pool.
        sizes: The sizes of its model.
        gpus: GPUs per actor.
        gpu_gib: Memory of one GPU in GiB.
        caption_tokens: Mean length of a caption.

    Returns:
        None unless vLLM runs on a GPU.
    """
    if not gpus or job.pool.engine == "transformers":
        return None
    options, spread = job.pool.engine_options, job.config.tensor_parallel_size
    config = job.config
    sizes = sizes.stored_as(config.dtype, config.quantization, config.kv_cache_dtype)
    utilization = engine_options(job.config, job.pool, gpus).gpu_memory_utilization
    fit = max_sequences(sizes, gpu_gib, utilization, spread, options.kv_cache_gib, caption_tokens)
    if options.kv_cache_gib is None:
        is_configured = utilization == options.gpu_memory_utilization
        origin = "gpu_memory_utilization" if is_configured else "limited by num_gpus"
        memory = (
            f"{spread} × ({utilization:g} ({origin}) × {gpu_gib:g} GiB − {WORKING_MEMORY_GIB:g} GiB of working memory) "
            f"− {sizes.weights_gib:.1f} GiB of {config.quantization or _bits(sizes.weight_bytes)} weights"
        )
    else:
        memory = f"{spread} × {options.kv_cache_gib:g} GiB of KV cache (kv_cache_gib)"
    per_caption = (
        f"{sizes.kv_bytes_per_token / 2**20:.3g} MiB of {_bits(sizes.cache_bytes)} KV cache per token, "
        f"{sizes.sequence_tokens(caption_tokens):,.0f} tokens per caption"
    )
    return fit, f"memory: {memory}; {per_caption}"
