"""From a manifest's `captioners` to configurations: each entry is a name that the registry knows, or settings.

captioners:
  - llava                                   # the published LLaVA-1.5
  - {preset: llava, name: llava-fp8, quantization: fp8}
  - {name: mine, kind: llava, model: /models/mine, pool: {max_actors: 8, num_gpus: 1}}
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.registry import get_default, get_kind
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.captioners import CaptionerEntry, PoolSettings, parse_captioner
from lotlip_data.manifests.settings.messages import unknown_name


@dataclass(frozen=True)
class CaptionerJob:
    """A captioner and how it runs."""

    config: CaptionerConfig
    pool: PoolSettings


def resolve_captioners(
    entries: Iterable[str | Mapping[str, Any] | CaptionerEntry], pool: Mapping[str, Any] | None = None
) -> list[CaptionerJob]:
    """The captioners that the entries name.

    Args:
        entries: Entries of a manifest's `captioners` section.
        pool: Settings of every captioner's pool; they override the entries'.

    Raises:
        UserError: For an unknown name, a wrong setting, or a name that two captioners have.
    """
    jobs = [_resolve(parse_captioner(entry), pool or {}) for entry in entries]
    names = [job.config.name for job in jobs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"captioners: {', '.join(twice)} is named twice; give one of them another `name`")
    if not jobs:
        raise UserError("captioners: none is named")
    return jobs


def select_captioners(
    entries: Iterable[str | Mapping[str, Any] | CaptionerEntry], chosen: Iterable[str | Mapping[str, Any]]
) -> list[str | Mapping[str, Any] | CaptionerEntry]:
    """The entries to run: `chosen`, or all of the manifest's where it is empty.

    Args:
        entries: The manifest's `captioners`.
        chosen: Names or settings. A name stands for the manifest's captioner of that name, with its settings, or else
            for the preset of that name.
    """
    entries, chosen = list(entries), list(chosen)
    if not chosen:
        return entries
    by_name: dict[str, str | Mapping[str, Any] | CaptionerEntry] = {}
    for entry in entries:
        with contextlib.suppress(UserError):  # one that cannot run here does not matter to the others
            by_name[resolve_captioners([entry])[0].config.name] = entry
    return [by_name.get(entry, entry) if isinstance(entry, str) else entry for entry in chosen]


def _resolve(entry: CaptionerEntry, pool: Mapping[str, Any]) -> CaptionerJob:
    preset = get_default(entry.preset).to_dict() if entry.preset else {}
    try:
        config = CaptionerConfig.from_dict(preset | entry.overrides)
        settings = entry.pool or PoolSettings()
        job = CaptionerJob(config, settings.replace(**pool) if pool else settings)
        _check_engine(job)
        return job
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_engine(job: CaptionerJob) -> None:
    config, engine = job.config, job.pool.engine
    if engine not in (known := ("auto", *get_kind(config.kind).engines)):
        raise ValueError(f"captioner {config.name!r}: `engine`: {unknown_name(engine, known)}")


def gpus_of_an_actor(config: CaptionerConfig, pool: PoolSettings, there: float) -> float:
    """That Ray reserves, where the cluster has so many."""
    if pool.num_gpus is not None:
        return pool.num_gpus
    return float(config.tensor_parallel_size) if there and get_kind(config.kind).needs_gpu else 0.0
