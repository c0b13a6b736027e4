"""From a manifest's `captioners` to configurations: each entry is a name that the registry knows, or settings.

captioners:
  - llava                                   # the published LLaVA-1.5
  - {preset: llava, name: llava-fp8, quantization: fp8}
  - {name: mine, kind: llava, model: /models/mine, pool: {actors: 8, num_gpus: 1}}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.registry import get_default
from lotlip_data.manifests.errors import UserError


@dataclass(frozen=True)
class Chosen:
    """A captioner and the fields of its `PoolSettings`, which say how it runs and not what it writes."""

    config: CaptionerConfig
    pool: dict[str, Any] = field(default_factory=dict)


def choose(entries: Iterable[str | Mapping[str, Any]]) -> list[Chosen]:
    """The captioners that the entries name. Raises UserError for an unknown name or setting, or a name used twice."""
    chosen = [_one(entry) for entry in entries]
    names = [one.config.name for one in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"captioners: {', '.join(twice)} is named twice; give one of them another `name`")
    if not chosen:
        raise UserError("captioners: none is named")
    return chosen


def _one(entry: str | Mapping[str, Any]) -> Chosen:
    settings = {"preset": entry} if isinstance(entry, str) else dict(entry)
    pool = settings.pop("pool", {})
    try:
        if preset := settings.pop("preset", None):
            settings = get_default(preset).to_dict() | settings
        return Chosen(CaptionerConfig.from_dict(settings), dict(pool))
    except ValueError as error:
        raise UserError(str(error)) from None
