"""Resolves the entries of a manifest's `captioners`, which are names of presets or settings, into configurations.

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
from lotlip_data.manifests.settings.captioners import CaptionerEntry, EngineOptions, PoolSettings, parse_captioner
from lotlip_data.manifests.settings.messages import unknown_name


@dataclass(frozen=True)
class CaptionerJob:
    """A captioner and the settings of its pool."""

    config: CaptionerConfig
    pool: PoolSettings


def resolve_captioners(
    entries: Iterable[str | Mapping[str, Any] | CaptionerEntry], pool: Mapping[str, Any] | None = None
) -> list[CaptionerJob]:
    """Resolve entries into captioners and their pools.

    Args:
        entries: Entries of a manifest's `captioners` section.
        pool: Settings of every captioner's pool. They override the entries' own.

    Raises:
        UserError: A name is unknown, a setting is invalid, two captioners have the same name, or there is no entry.
    """
    jobs = [_resolve(parse_captioner(entry), pool or {}) for entry in entries]
    names = [job.config.name for job in jobs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"captioners: {', '.join(repeated)} is named twice; give one of them another `name`")
    if not jobs:
        raise UserError("captioners: the list is empty; name at least one captioner")
    return jobs


def select_captioners(
    entries: Iterable[str | Mapping[str, Any] | CaptionerEntry], chosen: Iterable[str | Mapping[str, Any]]
) -> list[str | Mapping[str, Any] | CaptionerEntry]:
    """The entries to run: `chosen`, or all of the manifest's if `chosen` is empty.

    Args:
        entries: The manifest's `captioners`.
        chosen: Names or settings. A name selects the manifest's captioner of that name with its settings. If there is
            none, it selects the preset of that name.
    """
    entries, chosen = list(entries), list(chosen)
    if not chosen:
        return entries
    by_name: dict[str, str | Mapping[str, Any] | CaptionerEntry] = {}
    for entry in entries:
        with contextlib.suppress(UserError):  # an entry that is not chosen may be one that cannot run here
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


def engine_options(config: CaptionerConfig, pool: PoolSettings, gpus: float) -> EngineOptions:
    """The options of an actor's engine. Its share of a GPU's memory is at most that of the GPU which Ray reserves.

    Ray does not divide the memory of a GPU between its actors. vLLM fails to start if its share is not free, and the
    actors' own processes need memory too, so the shares of all actors of a GPU add up to the default of one.

    Args:
        config: The captioner.
        pool: Its pool.
        gpus: GPUs that Ray reserves per actor.
    """
    options, part = pool.engine_options, gpus / config.tensor_parallel_size
    if not 0 < part < 1:
        return options
    most = round(part * EngineOptions().gpu_memory_utilization, 4)
    return options.replace(gpu_memory_utilization=min(options.gpu_memory_utilization, most))


def gpus_per_actor(config: CaptionerConfig, pool: PoolSettings, cluster_gpus: float) -> float:
    """GPUs that Ray reserves per actor.

    Args:
        config: The captioner.
        pool: Its pool, whose `num_gpus` overrides the default.
        cluster_gpus: GPUs of the cluster; without any, a captioner that prefers a GPU runs on the CPU.
    """
    if pool.num_gpus is not None:
        return pool.num_gpus
    return float(config.tensor_parallel_size) if cluster_gpus and get_kind(config.kind).needs_gpu else 0.0
