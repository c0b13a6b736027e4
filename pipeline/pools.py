"""Pools of Ray actors that work off (captioner, shard) units. The only file that uses Ray for recaptioning.

Ray places the actors, restarts them and finds the nodes. What is ours is a queue of units: a unit whose actor died
goes back to it, at most MAX_ATTEMPTS times. An actor holds two units at once, so that its engine does not drain
where one shard ends and the next begins. A pool without work left gives its actors' resources back, so with fewer
GPUs than pools need, the pools run in turn.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from lotlip_data.captioners.base import CaptionerConfig, EngineDead
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline.captioning import PART_SIZE, Captioning, UnitResult
from lotlip_data.pipeline.choice import PoolSettings
from lotlip_data.pipeline.tasks import brief

MAX_ATTEMPTS = 3
UNITS_AN_ACTOR = 2
MAX_RESTARTS = 10


class CaptionActor:
    """One process with one engine."""

    def __init__(self, run_url: str, config: CaptionerConfig, settings: PoolSettings, part_size: int) -> None:
        from lotlip_data.captioners.base import load_engine

        engine = load_engine(config, settings.engine, **settings.engine_options)
        self._captioning = Captioning(Run(run_url), config, engine, settings.engine, part_size)

    async def caption(self, shard: int) -> UnitResult:
        try:
            return await self._captioning.unit(shard)
        except EngineDead:
            os._exit(1)  # Ray restarts the actor, and with it the engine

    def ready(self) -> bool:
        return True


@dataclass(frozen=True)
class FailedUnit:
    captioner: str
    shard: int
    reason: str


@dataclass
class Pool:
    """The actors of one captioner and the units that they have not finished."""

    run: Run
    config: CaptionerConfig
    settings: PoolSettings
    units: deque[int]
    part_size: int = PART_SIZE
    attempts: dict[int, int] = field(default_factory=dict)
    actors: list[Any] = field(default_factory=list)
    running: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    """From a result's reference to the actor that works on it and the unit's shard."""

    def start(self) -> None:
        gpus_there = ray.cluster_resources().get("GPU", 0)
        num_gpus = self.settings.num_gpus if self.settings.num_gpus is not None else float(gpus_there > 0)
        actors = self.settings.actors or max(1, int(gpus_there / num_gpus) if num_gpus else 1)
        kind: Any = ray.remote(CaptionActor)
        kind = kind.options(
            num_cpus=self.settings.num_cpus,
            num_gpus=num_gpus,
            max_concurrency=2 * UNITS_AN_ACTOR,
            max_restarts=MAX_RESTARTS,
        )
        for _ in range(min(actors, len(self.units))):
            self.actors.append(kind.remote(self.run.url, self.config, self.settings, self.part_size))

    def feed(self) -> None:
        """Hand out units, evenly, until every actor holds UNITS_AN_ACTOR of them."""
        for load in range(UNITS_AN_ACTOR):
            for actor in self.actors:
                held = sum(holder is actor for holder, _ in self.running.values())
                if self.units and held <= load:
                    shard = self.units.popleft()
                    self.running[actor.caption.remote(shard)] = (actor, shard)

    def take_back(self, reference: Any, error: Exception) -> FailedUnit | None:
        """Put the unit of a failed call back into the queue, or give it up after MAX_ATTEMPTS."""
        actor, shard = self.running.pop(reference)
        if isinstance(error, ActorDiedError) and actor in self.actors:
            self.actors.remove(actor)  # it has used up its restarts, or could not load its engine
        self.attempts[shard] = self.attempts.get(shard, 0) + 1
        if self.attempts[shard] < MAX_ATTEMPTS and self.actors:
            self.units.append(shard)
            return None
        return FailedUnit(self.config.name, shard, _reason(error))

    def give_up(self) -> list[FailedUnit]:
        """The units that nobody is left to work on."""
        if self.actors or self.running:
            return []
        failed = [FailedUnit(self.config.name, shard, "no actor of its pool is left") for shard in self.units]
        self.units.clear()
        return failed

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
        self.actors.clear()


def work_off(
    pools: Iterable[Pool], done: Callable[[str, UnitResult], None], failed: Callable[[FailedUnit], None]
) -> None:
    """Run the pools until no unit is left; `done` and `failed` hear of each unit once."""
    pools = list(pools)
    try:
        for pool in pools:
            pool.start()
        while any(pool.units or pool.running for pool in pools):
            for pool in pools:
                pool.feed()
            _collect(pools, done, failed)
            for pool in pools:
                for unit in pool.give_up():
                    failed(unit)
                if not pool.units and not pool.running:
                    pool.stop()
    finally:
        for pool in pools:
            pool.stop()


def _collect(pools: list[Pool], done: Callable[[str, UnitResult], None], failed: Callable[[FailedUnit], None]) -> None:
    owner = {reference: pool for pool in pools for reference in pool.running}
    if not owner:
        return
    finished, _ = ray.wait(list(owner), num_returns=1, timeout=10.0)
    for reference in finished:
        pool = owner[reference]
        try:
            result = ray.get(reference)
        except (RayActorError, RayTaskError) as error:
            if unit := pool.take_back(reference, error):
                failed(unit)
        else:
            pool.running.pop(reference)
            done(pool.config.name, result)


def _reason(error: Exception) -> str:
    return brief(error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error)
