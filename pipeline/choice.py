"""From a manifest's `captioners` to configurations: each entry is a name that the registry knows, or settings.

captioners:
  - llava                                   # the published LLaVA-1.5
  - {preset: llava, name: llava-fp8, quantization: fp8}
  - {name: mine, kind: llava, model: /models/mine, pool: {actors: 8, num_gpus: 1}}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, Resources
from lotlip_data.captioners.registry import get_default
from lotlip_data.manifests.errors import UserError


@dataclass(frozen=True)
class PoolSettings:
    """How a captioner runs, which never changes what it writes.

    actors: at most so many; None is one for each `num_gpus` that the cluster has, and one without GPUs.
    num_gpus, num_cpus: what Ray reserves for an actor; num_gpus None is 1 where the cluster has GPUs, 0 elsewhere.
    engine: `vllm`, `transformers`, or `auto`: vLLM where there is a GPU.
    engine_options: the fields of `captioners.base.Resources`.
    """

    actors: int | None = None
    num_gpus: float | None = None
    num_cpus: float = 1.0
    engine: str = "auto"
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise ValueError(f"pool: actors={self.actors}: must be at least 1")
        for name in ("num_gpus", "num_cpus"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"pool: {name}={value}: must not be negative")
        Resources(**self.engine_options)


@dataclass(frozen=True)
class Chosen:
    """A captioner and how it runs."""

    config: CaptionerConfig
    pool: PoolSettings


def choose(entries: Iterable[str | Mapping[str, Any]], pool: Mapping[str, Any] | None = None) -> list[Chosen]:
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


def _one(entry: str | Mapping[str, Any], pool: Mapping[str, Any]) -> Chosen:
    settings: dict[str, Any] = {"preset": entry} if isinstance(entry, str) else dict(entry)
    pool = {**dict(settings.pop("pool", {})), **pool}
    try:
        if preset := settings.pop("preset", None):
            settings = get_default(preset).to_dict() | settings
        if unknown := sorted(set(pool) - {item.name for item in fields(PoolSettings)}):
            raise ValueError(f"pool: there is no setting {', '.join(unknown)}")
        return Chosen(CaptionerConfig.from_dict(settings), PoolSettings(**pool))
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None
