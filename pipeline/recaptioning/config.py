"""From a manifest's `captioners` to configurations: each entry is a name that the registry knows, or settings.

captioners:
  - llava                                   # the published LLaVA-1.5
  - {preset: llava, name: llava-fp8, quantization: fp8}
  - {name: mine, kind: llava, model: /models/mine, pool: {max_actors: 8, num_gpus: 1}}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions
from lotlip_data.captioners.registry import get_default, get_kind
from lotlip_data.manifests.errors import UserError


@dataclass(frozen=True)
class PoolSettings:
    """How a captioner runs, which never changes what it writes.

    min_actors: asked for before any pool gets more. max_actors: None is one for each `num_gpus` that the cluster has,
    and one without GPUs; a larger number makes Ray's autoscaler add nodes.
    num_gpus, num_cpus: what Ray reserves for an actor; num_gpus None is those that one copy of the model is spread over
    where the cluster has GPUs, and 0 elsewhere.
    accelerator_type: as Ray names it (`A100`, `H100`, …). resources: custom Ray resources of an actor.
    labels: of the nodes that may hold an actor, such as {ray.io/market-type: spot}.
    concurrency: images in flight in an engine; None is what the engine takes for best.
    part_size: captions that a killed actor may cost.
    stall_seconds: an engine that gives no caption for so long, with images waiting, is taken for hung and replaced.
    engine: `auto`, vLLM where there is a GPU, or one of the kind's `engines`.
    engine_options: the fields of `captioners.base.Resources`.
    """

    min_actors: int = 1
    max_actors: int | None = None
    num_gpus: float | None = None
    num_cpus: float = 1.0
    accelerator_type: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    concurrency: int | None = None
    part_size: int = 512
    stall_seconds: float = 600.0
    engine: str = "auto"
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, fix: str) -> None:
            if not holds:
                raise ValueError(f"pool: {name}={getattr(self, name)!r}: {fix}")

        require(self.min_actors >= 1, "min_actors", "must be at least 1")
        require(self.max_actors is None or self.max_actors >= 1, "max_actors", "must be at least 1")
        if self.max_actors is not None:
            require(self.min_actors <= self.max_actors, "min_actors", f"must not exceed max_actors={self.max_actors}")
        require(self.num_gpus is None or self.num_gpus >= 0, "num_gpus", "must not be negative")
        require(self.num_cpus >= 0, "num_cpus", "must not be negative")
        require(all(amount > 0 for amount in self.resources.values()), "resources", "amounts must be above 0")
        require(self.concurrency is None or self.concurrency >= 1, "concurrency", "must be at least 1")
        require(self.part_size >= 2, "part_size", "must be at least 2")
        require(self.stall_seconds > 0, "stall_seconds", "must be above 0")
        EngineOptions(**self.engine_options)


@dataclass(frozen=True)
class CaptionerJob:
    """A captioner and how it runs."""

    config: CaptionerConfig
    pool: PoolSettings


def resolve_captioners(
    entries: Iterable[str | Mapping[str, Any]], pool: Mapping[str, Any] | None = None
) -> list[CaptionerJob]:
    """The captioners that the entries name; `pool` goes before what they say of their pools.

    Raises UserError for an unknown name or setting, or a name used twice.
    """
    chosen = [_one(entry, pool or {}) for entry in entries]
    names = [one.config.name for one in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"captioners: {', '.join(twice)} is named twice; give one of them another `name`")
    if not chosen:
        raise UserError("captioners: none is named")
    return chosen


def _one(entry: str | Mapping[str, Any], pool: Mapping[str, Any]) -> CaptionerJob:
    settings: dict[str, Any] = {"preset": entry} if isinstance(entry, str) else dict(entry)
    try:
        if not isinstance(own := settings.pop("pool", None) or {}, Mapping):
            raise ValueError(f"pool: {own!r} is no mapping of settings, such as {{max_actors: 8}}")
        pool = {**own, **pool}
        if preset := settings.pop("preset", None):
            settings = get_default(preset).to_dict() | settings
        if unknown := sorted(set(pool) - {item.name for item in fields(PoolSettings)}):
            raise ValueError(f"pool: there is no setting {', '.join(unknown)}")
        chosen = CaptionerJob(CaptionerConfig.from_dict(settings), PoolSettings(**pool))
        _check_engine(chosen)
        return chosen
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None


def _check_engine(chosen: CaptionerJob) -> None:
    config, engine = chosen.config, chosen.pool.engine
    if engine not in (known := ("auto", *get_kind(config.kind).engines)):
        raise ValueError(f"captioner {config.name!r}: engine: no {engine!r}; one of {', '.join(known)}")


def gpus_of_an_actor(config: CaptionerConfig, pool: PoolSettings, there: float) -> float:
    """That Ray reserves, where the cluster has so many."""
    if pool.num_gpus is not None:
        return pool.num_gpus
    return float(config.tensor_parallel_size) if there and get_kind(config.kind).needs_gpu else 0.0
