"""Resolves the entries of a manifest's `captioners`, which are names of presets or settings, into configurations.

captioners:
  - llava                                   # the published LLaVA-1.5
  - {preset: llava, name: llava-pad, image_fit: pad}
  - {name: mine, kind: llava, model: /models/mine, pool: {max_actors: 8, num_gpus: 1}}
  - {preset: llava, name: both, prompts: {long: Describe the image in detail., title: Give the image a title.}}
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.registry import get_default, get_kind
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import value_column
from lotlip_data.manifests.settings.captioners import (
    CaptionerEntry,
    EngineOptions,
    PoolSettings,
    parse_captioner,
    preset_name,
)
from lotlip_data.manifests.settings.messages import unknown_name


@dataclass(frozen=True)
class CaptionerJob:
    """A captioner, the settings of its pool, and which of its texts are wanted."""

    config: CaptionerConfig
    pool: PoolSettings
    selected: tuple[str, ...] = ()
    """Names of the texts to make; empty for all that the captioner makes."""

    @property
    def texts(self) -> tuple[CaptionerConfig, ...]:
        """The configurations of the texts to make."""
        return tuple(text for text in self.config.texts if not self.selected or text.name in self.selected)


Entry = str | Mapping[str, Any] | CaptionerEntry


def resolve_captioners(entries: Iterable[Entry], pool: Mapping[str, Any] | None = None) -> list[CaptionerJob]:
    """Resolve entries into captioners and their pools.

    Args:
        entries: Entries of a manifest's `captioners` section.
        pool: Settings of every captioner's pool. They override the entries' own.

    Raises:
        UserError: A name is unknown, a setting is invalid, two captioners have the same name, or there is no entry.
    """
    return _checked([_resolve(parse_captioner(entry), pool or {}) for entry in entries])


def select_captioners(
    entries: Iterable[Entry], chosen: Iterable[str | Mapping[str, Any]], pool: Mapping[str, Any] | None = None
) -> list[CaptionerJob]:
    """The captioners to run: `chosen`, or all of the manifest's if `chosen` is empty.

    Args:
        entries: The manifest's `captioners`.
        chosen: Names or settings. A name selects the manifest's captioner of that name with its settings, or one text
            of a captioner that makes several. If there is neither, it selects the preset of that name.
        pool: As for `resolve_captioners`.

    Raises:
        UserError: As `resolve_captioners`.
    """
    entries, chosen = list(entries), list(chosen)
    if not chosen:
        return resolve_captioners(entries, pool)
    by_name: dict[str, CaptionerJob] = {}
    for entry in entries:
        with contextlib.suppress(UserError):  # an entry that is not chosen may be one that cannot run here
            (job,) = resolve_captioners([entry], pool)
            texts = job.config.texts if job.config.prompts else ()
            by_name |= {text.name: replace(job, selected=(text.name,)) for text in texts} | {job.config.name: job}
    return _checked(
        _merged(
            (by_name.get(preset_name(choice)) if isinstance(choice, str) else None)
            or _resolve(parse_captioner(choice), pool or {})
            for choice in chosen
        )
    )


def _merged(jobs: Iterable[CaptionerJob]) -> list[CaptionerJob]:
    """The jobs, with one in place of several that select texts of the same captioner."""
    merged: list[CaptionerJob] = []
    for job in jobs:
        place = next((n for n, other in enumerate(merged) if job.config.prompts and other.config == job.config), None)
        if place is None:
            merged.append(job)
        else:
            earlier = merged[place].selected
            selected = (*earlier, *job.selected) if earlier and job.selected else ()
            merged[place] = replace(job, selected=selected)
    return merged


def _checked(jobs: list[CaptionerJob]) -> list[CaptionerJob]:
    """The jobs. Raises UserError if there is none, or if two captioners, texts or columns have the same name."""
    if not jobs:
        raise UserError("captioners: the list is empty; name at least one captioner")
    owners: dict[str, str] = {}
    for job in jobs:
        name = job.config.name
        texts = [text.name for text in job.config.texts] if job.config.prompts else []
        owned = [(name, name), *((text, f"{text}, a text of {name}") for text in texts)]
        for text in job.config.texts:
            keys = text.structured.columns if text.structured else ()
            owned += [(value_column(text.name, key), f"the column of {key!r} of {text.name}") for key in keys]
        for taken, owner in owned:
            if taken not in owners:
                owners[taken] = owner
            elif owners[taken] == owner:
                raise UserError(f"captioners: {owner} is named twice; give one of them another `name`")
            else:
                raise UserError(
                    f"captioners: {owners[taken]}, and {owner}, have the same name {taken}; give one another `name`"
                )
    return jobs


def _resolve(entry: CaptionerEntry, pool: Mapping[str, Any]) -> CaptionerJob:
    preset = get_default(entry.preset).to_dict() if entry.preset else {}
    if entry.prompts:
        preset.pop("prompt", None)
    if entry.model is not None:
        preset.pop("revision", None)  # a commit of the preset's model
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
    get_kind(config.kind).check_settings(config)
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
