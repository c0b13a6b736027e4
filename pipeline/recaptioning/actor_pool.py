"""Pools of Ray actors that work off (captioner, shard) units. The only file that uses Ray for recaptioning.

Ray places the actors, restarts them where there is room, and asks its autoscaler for more. What is ours is a queue of
units: only an actor whose engine is ready gets one, a unit whose actor died goes back, and an actor that the queue has
nothing for gives its GPU back at once. The pools ask for their actors in turns, so they share what the cluster has, and
with fewer GPUs than pools they run one after another.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.recaptioning.actor import CaptionActor
from lotlip_data.pipeline.recaptioning.config import PoolSettings, gpus_of_an_actor
from lotlip_data.pipeline.recaptioning.results import UnitResult

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""How often a unit may fail in a row without having come any further."""

UNITS_AN_ACTOR = 2
"""Units that an actor holds, so that its engine does not drain where one ends and the next begins."""

MAX_FAILURES = 10
"""Units that a pool gives up in a row before it gives up altogether."""

MAX_STARTS = 5
"""How often in a row an engine may fail to start."""

MAX_SILENT = 10
"""How often in a row an actor may be gone when it is asked to start its engine."""

FINAL = (ValueError, TypeError, ImportError, UserError)
"""What an engine raises that only a person can mend."""

LEAVE_SECONDS = 20.0
WAITING_SECONDS = 30.0


@dataclass(frozen=True)
class FailedUnit:
    """A shard that is given up, or, with None, all that a pool has left."""

    captioner: str
    shard: int | None
    reason: str


@dataclass(eq=False)
class ActorSlot:
    """An actor of a pool. `ask_at`: when to ask it to start its engine; None once it is asked, or has."""

    handle: Any
    ready: bool = False
    ask_at: float | None = 0.0
    failed_starts: int = 0
    silent: int = 0


@dataclass(eq=False)
class ActorPool:
    """The actors of one captioner and the units that they have not finished."""

    run: Run
    config: CaptionerConfig
    settings: PoolSettings
    units: deque[int]
    members: list[ActorSlot] = field(default_factory=list)
    starting: dict[Any, ActorSlot] = field(default_factory=dict)
    """From the reference to an answer to `start`, to the actor that was asked."""
    running: dict[Any, tuple[ActorSlot, int]] = field(default_factory=dict)
    """From a result's reference to the actor that works on it and the unit's shard."""
    fruitless: Counter[int] = field(default_factory=Counter)
    """By shard: failures in a row that brought nothing forward."""
    seen: dict[int, list[str]] = field(default_factory=dict)
    """By shard: the names in its parts folder at its last failure."""
    failures: int = 0
    """Units given up in a row."""
    broken: str = ""
    """Why no further actor is worth starting."""

    @property
    def busy(self) -> bool:
        return bool(self.units or self.running)

    @property
    def num_gpus(self) -> float:
        return gpus_of_an_actor(self.config, self.settings, ray.cluster_resources().get("GPU", 0))

    def size(self) -> int:
        """Actors that the pool asks for: never more than it has units."""
        gpus = ray.cluster_resources().get("GPU", 0)
        most = self.settings.max_actors or (int(gpus / self.num_gpus) if self.num_gpus else 1)
        return min(max(self.settings.min_actors, most), len(self.units))

    def add_member(self) -> None:
        kind: Any = ray.remote(CaptionActor)
        kind = kind.options(
            num_cpus=self.settings.num_cpus,
            num_gpus=self.num_gpus,
            accelerator_type=self.settings.accelerator_type,
            resources=dict(self.settings.resources),
            label_selector=dict(self.settings.labels),
            max_concurrency=2 * UNITS_AN_ACTOR + 2,
            max_restarts=-1,  # a pool that works for weeks loses actors; what may not go on for ever is counted below
        )
        self.members.append(ActorSlot(kind.remote(self.run.url, self.config, self.settings)))

    def feed(self) -> None:
        """Hand out units, evenly, until every ready actor holds UNITS_AN_ACTOR; let go of actors with nothing to do."""
        if self.units and not self.members and not self.broken:
            self.add_member()  # the last one was let go before a unit came back
        self._ask()
        held = Counter(member for member, _ in self.running.values())
        for load in range(UNITS_AN_ACTOR):
            for member in self.members:
                if self.units and member.ready and held[member] <= load:
                    shard = self.units.popleft()
                    self.running[member.handle.caption.remote(shard)] = (member, shard)
                    held[member] += 1
        if not self.units:
            for member in [member for member in self.members if not held[member]]:
                self._let_go(member)

    def take(self, reference: Any) -> UnitResult | FailedUnit | None:
        """What has come of one of our references: a finished unit, one that is given up, or neither."""
        if reference in self.starting:
            self._started(self.starting.pop(reference), reference)
            return None
        member, shard = self.running.pop(reference)
        try:
            result: UnitResult = ray.get(reference)
        except RayTaskError as error:
            self._judge([shard])
            return self._put_back(shard, _reason(error))
        except RayActorError as error:
            if member.ready:
                self._judge([shard, *(other for holder, other in self.running.values() if holder is member)])
                logger.warning(f"{self.config.name}: an actor died at work on shard {shard}; it is started again")
                member.ready, member.ask_at = False, time.monotonic()
            return self._put_back(shard, one_line(error))
        self.fruitless.pop(shard, None)
        self.seen.pop(shard, None)
        self.failures = 0
        return result

    def give_up(self) -> FailedUnit | None:
        """All the units that are left, where no actor is, nor is worth starting."""
        if not (self.broken and self.units) or self.members or self.running:
            return None
        left, self.units = len(self.units), deque()
        return FailedUnit(self.config.name, None, f"{left} shards are left undone: {self.broken}")

    def leave(self) -> list[Any]:
        """Ask the actors at work to save what they have; gives the references to their answers."""
        return [
            member.handle.leave.remote() for member in {member for member, _ in self.running.values()} if member.ready
        ]

    def stop(self) -> None:
        for member in list(self.members):
            self._let_go(member)

    def _ask(self) -> None:
        for member in self.members:
            if not member.ready and member.ask_at is not None and member.ask_at <= time.monotonic():
                self.starting[member.handle.start.remote()] = member
                member.ask_at = None

    def _started(self, member: ActorSlot, reference: Any) -> None:
        if member not in self.members:
            return
        member.ask_at = time.monotonic() + 1  # a call to an actor that is between two lives fails at once
        try:
            start, first = ray.get(reference)
        except RayTaskError as error:
            member.failed_starts += 1
            final = isinstance(error.cause, FINAL) or member.failed_starts == MAX_STARTS
            if final:
                self._lose(member, _reason(error))
            else:
                logger.warning(f"{self.config.name}: an engine did not start, and is tried again: {_reason(error)}")
                ray.kill(member.handle, no_restart=False)  # a new process, since this one may hold broken remains
        except RayActorError as error:
            member.silent += 1
            if member.silent == MAX_SILENT or isinstance(error, ActorDiedError):
                self._lose(member, f"its actor died while its engine started, again and again ({one_line(error)})")
        else:
            member.ready, member.ask_at, member.failed_starts, member.silent = True, None, 0, 0
            logger.info(
                f"{self.config.name}: an engine is ready: {start:.1f} s to start, {first:.1f} s for a first image"
            )

    def _lose(self, member: ActorSlot, reason: str) -> None:
        self._let_go(member)
        logger.warning(f"{self.config.name}: an actor is lost: {reason}")
        if not self.members:
            self.broken = reason

    def _let_go(self, member: ActorSlot) -> None:
        self.members.remove(member)
        ray.kill(member.handle)

    def _judge(self, shards: Sequence[int]) -> None:
        """Count a failure of units that one actor held at once, unless one of them has come further since its last."""
        parts = {shard: storage.list_names(self.run.caption_parts(self.config.name, shard)) for shard in shards}
        further = any(self.seen.get(shard) != names for shard, names in parts.items())
        self.seen.update(parts)
        for shard in shards:
            self.fruitless[shard] = 1 if further else self.fruitless[shard] + 1

    def _put_back(self, shard: int, reason: str) -> FailedUnit | None:
        """Back into the queue, unless it has failed MAX_ATTEMPTS times in a row to no avail."""
        if self.fruitless[shard] < MAX_ATTEMPTS:
            self.units.appendleft(shard)
            return None
        self.failures += 1
        if self.failures == MAX_FAILURES:
            self.broken = f"{MAX_FAILURES} shards in a row were given up, the last one since {reason}"
            self.stop()
        return FailedUnit(self.config.name, shard, reason)


def run_pools(
    pools: Sequence[ActorPool],
    done: Callable[[str, UnitResult], None],
    failed: Callable[[FailedUnit], None],
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run the pools until no unit is left.

    Args:
        pools: The pools, which share the cluster.
        done: Called once with the captioner's name and the result of each unit that is completed.
        failed: Called once for each unit that is given up.
        tick: Called about once per second, for the progress of the units that are in progress.
    """
    try:
        _ask_for_actors(pools)
        waiting_since: float | None = time.monotonic()
        while any(pool.busy for pool in pools):
            for pool in pools:
                pool.feed()
            tick()
            for pool, result in _collect(pools):
                if isinstance(result, FailedUnit):
                    failed(result)
                else:
                    done(pool.config.name, result)
            if any(member.ready for pool in pools for member in pool.members):
                waiting_since = None
            elif waiting_since and time.monotonic() - waiting_since > WAITING_SECONDS:
                waiting_since = None
                logger.warning(f"still waiting for a first engine; the cluster has {_offer()}")
    finally:
        if leaving := [reference for pool in pools for reference in pool.leave()]:
            ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_SECONDS)
        for pool in pools:
            pool.stop()


def _ask_for_actors(pools: Sequence[ActorPool]) -> None:
    """Each pool's least number first, then in turns: Ray places actors in the order in which they are asked for."""
    wanted = [
        (turn >= pool.settings.min_actors, turn, number)
        for number, pool in enumerate(pools)
        for turn in range(pool.size())
    ]
    for _, _, number in sorted(wanted):
        pools[number].add_member()


def _collect(pools: Sequence[ActorPool]) -> Iterator[tuple[ActorPool, UnitResult | FailedUnit]]:
    """What has come since, after at most a second or so."""
    owner = {reference: pool for pool in pools for reference in (*pool.starting, *pool.running)}
    if owner:
        ended, _ = ray.wait(list(owner), num_returns=1, timeout=1.0)
    else:
        ended = []
        time.sleep(0.2)
    for reference in ended:
        if result := owner[reference].take(reference):
            yield owner[reference], result
    for pool in pools:
        if left := pool.give_up():
            yield pool, left


def _offer() -> str:
    offer = {name: amount for name, amount in ray.cluster_resources().items() if not name.startswith("node:")}
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(offer.items()) if "memory" not in name)


def _reason(error: Exception) -> str:
    return one_line(error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error)
