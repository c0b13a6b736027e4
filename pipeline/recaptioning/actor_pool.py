"""Pools of Ray actors that work through queues of (captioner, shard) units. Only this file schedules Ray actors.

A unit is all texts of a captioner that a shard lacks: an actor makes them from one reading of its images.

Ray places the actors, restarts them where there is room, and asks its autoscaler for nodes. Each pool keeps the queue
of one captioner:

- Only an actor whose engine is ready gets a unit.
- A unit whose actor died returns to the queue.
- An actor without a unit, while the queue is empty, releases its GPU at once.
- An actor that was removed, because its engine did not start, is asked for again while another engine works.
- While further shards may come (`more`), engines start at once and wait for them, and actors leave a CPU to the stages
  that bring the shards (`actor_slots`).

The pools create their actors in turns, so they share the cluster. With fewer GPUs than pools, they run one after
another.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError, RuntimeEnvSetupError

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.storage_retry import DiskError
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_cluster import check_cluster, cluster_address, lacking
from lotlip_data.pipeline.core.stage_threads import raise_if_stopped
from lotlip_data.pipeline.recaptioning.actor import REPEATED_STARTS, CaptionActor, StartFailed, StartReport
from lotlip_data.pipeline.recaptioning.actor_slots import ActorSlot, CpuBudget, FailedUnit, IdleActors
from lotlip_data.pipeline.recaptioning.config import PoolSettings, gpus_per_actor
from lotlip_data.pipeline.recaptioning.results import UnitResult
from lotlip_data.pipeline.recaptioning.shard_text import ShardOutcome

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Failures of a unit in a row, without progress in between, after which it is reported as failed."""

UNITS_PER_ACTOR = 2
"""Units that an actor holds, so that its engine does not drain where one ends and the next begins."""

MAX_FAILED_UNITS = 10
"""Failed units in a row after which a text is not tried any more. Without any text left, the pool stops."""

MAX_LOST_STARTS = 10
"""Starts of an engine in a row at which the process died, after which its actor is removed."""

RETRY_SECONDS = 1.0
"""Pause before an actor is called again: a call to an actor that is being restarted fails at once."""

MAX_REPLACEMENTS = 5
"""Times in a row that removed actors are asked for again, without any engine becoming ready in between."""

REPLACE_SECONDS = 60.0
"""Pause between two of these."""

DRAIN_SECONDS = 20.0
"""Time for actors to save finished captions when the run stops early."""

WAIT_WARNING_SECONDS = 30.0
"""Time without any ready engine after which the cluster's resources are logged."""


@dataclass(eq=False)
class ActorPool:
    """The actors of one captioner and the units that are not finished."""

    run: Run
    config: CaptionerConfig
    settings: PoolSettings
    texts: dict[int, tuple[str, ...]]
    """By shard, the names of the texts that it lacks."""
    more: bool = False
    """Whether further shards may come."""
    expected: int = 0
    """Number of shards that may still come."""
    wanted: tuple[str, ...] = ()
    """Names of the texts that further shards may lack."""
    queue: deque[int] = field(default_factory=deque)
    """Shards that no actor holds."""
    slots: list[ActorSlot] = field(default_factory=list)
    placing: dict[Any, ActorSlot] = field(default_factory=dict)
    """Reference of a call of `placed` → its actor. It waits in Ray until there is room for the actor."""
    starting: dict[Any, ActorSlot] = field(default_factory=dict)
    """Reference of a call of `start` → its actor."""
    running: dict[Any, tuple[ActorSlot, int]] = field(default_factory=dict)
    """Reference of a call of `caption` → its actor and shard."""
    failed_attempts: Counter[int] = field(default_factory=Counter)
    """By shard: failures in a row without progress in between."""
    saved_parts: dict[int, list[str]] = field(default_factory=dict)
    """By shard: the names in its parts folder at its last failure."""
    failed_units: Counter[str] = field(default_factory=Counter)
    """By text, failed units in a row."""
    replacements: int = 0
    """Times in a row that removed actors were asked for again."""
    replace_at: float = 0.0
    """When they may be asked for again, in monotonic time."""
    stop_reason: str = ""
    """Why the pool starts no further actor; empty while it works."""
    stopped_texts: set[str] = field(default_factory=set)
    """Names of the texts that are not tried any more."""
    idle: IdleActors[ActorSlot] = field(default_factory=IdleActors)
    budget: CpuBudget | None = None
    """Shared by the pools of a cluster; None where an actor reserves the CPUs of its settings."""

    def __post_init__(self) -> None:
        self.queue = self.queue or deque(self.texts)
        self.text_names = sorted({*self.wanted, *(name for names in self.texts.values() for name in names)})

    @property
    def busy(self) -> bool:
        """Whether a unit is not finished, or may still come."""
        return bool(self.queue or self.running or self.more)

    def extend(self, texts: Mapping[int, tuple[str, ...]], expected: int, more: bool) -> None:
        """Add units that have come, and set what may still come. A pool that has stopped waits for nothing."""
        if not self.more:
            return
        for shard, names in texts.items():
            if left := tuple(name for name in names if name not in self.stopped_texts):
                self.texts[shard] = left
                self.queue.append(shard)
        self.more, self.expected = more, expected

    @property
    def num_gpus(self) -> float:
        """GPUs that Ray reserves per actor."""
        return gpus_per_actor(self.config, self.settings, ray.cluster_resources().get("GPU", 0))

    def target_size(self) -> int:
        """Number of actors to create: never more than units."""
        gpus = ray.cluster_resources().get("GPU", 0)
        limit = self.settings.max_actors or (int(gpus / self.num_gpus) if self.num_gpus else 1)
        return min(max(self.settings.min_actors, limit), len(self.queue) + (self.expected if self.more else 0))

    @property
    def wish(self) -> str:
        """What the pool asks the cluster for, or why it asks for nothing."""
        if self.stop_reason:
            return "no actor"
        settings, size = self.settings, self.target_size()
        amounts = {"GPU": self.num_gpus, "CPU": settings.num_cpus, **settings.resources}
        each = [f"{amount:g} {name}" for name, amount in amounts.items() if amount]
        each += [f"a GPU of type {settings.accelerator_type}"] if settings.accelerator_type else []
        each += [f"the label {name}={value}" for name, value in settings.labels.items()]
        every = " each" if size > 1 else ""
        return f"{wording.count(size, 'actor')}" + (f" with {', '.join(each)}{every}" if each else "")

    def add_actor(self) -> None:
        """Create an actor. Ray places it as soon as there is room."""
        cpus = self.budget.take(self.settings.num_cpus) if self.budget else self.settings.num_cpus
        self.slots.append(ActorSlot(create_actor(self, cpus), cpus))

    def check_placement(self) -> None:
        """Stop the pool if no machine can hold an actor and no other machine can come; warn if another one can."""
        settings = self.settings
        needed = {"CPU": settings.num_cpus, "GPU": self.num_gpus, **settings.resources}
        if settings.accelerator_type:
            needed[f"accelerator_type:{settings.accelerator_type}"] = 0.001
        if not (missing := lacking(needed, settings.labels)):
            return
        reason = f"no machine has what one actor asks for ({missing}); the cluster has {_cluster_resources()}"
        if cluster_address():
            logger.warning(f"{self.config.name}: {reason}; waiting for a machine that has it")
        else:
            self.stop_reason = f"{reason}. Correct the captioner's `pool`, or set RAY_ADDRESS to a cluster"

    def dispatch(self, is_room_wanted: bool = False) -> None:
        """Give units to ready actors, evenly, up to UNITS_PER_ACTOR each, and release actors without a unit.

        Args:
            is_room_wanted: Whether another pool waits for room on the cluster.
        """
        if self.queue and not self.slots and not self.stop_reason:
            self._return_actor()  # the last actor was released before a unit returned to the queue
        self._end_hung_starts()
        self._request_starts()
        held = Counter(slot for slot, _ in self.running.values())
        for load in range(UNITS_PER_ACTOR):
            for slot in self.slots:
                if self.queue and slot.ready and held[slot] <= load:
                    shard = self.queue.popleft()
                    self.running[slot.handle.caption.remote(shard, self.texts[shard])] = (slot, shard)
                    held[slot] += 1
        self.idle.note(slot for slot in self.slots if slot.ready and not held[slot])
        if self.queue:
            if self.idle.released and self.slots and all(held[slot] == UNITS_PER_ACTOR for slot in self.slots):
                self._return_actor()
        elif self.more:
            for slot in self.idle.expired(is_room_wanted):
                logger.info(f"{self.config.name}: an actor without a shard is released until shards come")
                self._release(slot)
        else:
            for slot in [slot for slot in self.slots if not held[slot]]:
                self._release(slot)
        self._replace_removed()

    def _return_actor(self) -> None:
        """Ask for an actor in place of one that was released while it was idle."""
        self.idle.released = max(0, self.idle.released - 1)
        self.add_actor()

    def collect(self, reference: Any) -> list[UnitResult | FailedUnit]:
        """Handle the answer to one call.

        Args:
            reference: A key of `placing`, `starting` or `running` whose answer has arrived.

        Returns:
            What the answer ends: a result for each finished text of a unit, and failed units.

        Raises:
            DiskError: Captions cannot be written, those of other units neither.
        """
        if reference in self.placing:
            self._handle_placement(self.placing.pop(reference), reference)
            return []
        if reference in self.starting:
            self._handle_start(self.starting.pop(reference), reference)
            return []
        slot, shard = self.running.pop(reference)
        try:
            outcome: ShardOutcome = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, DiskError):
                raise error.cause from None
            self._count_failure([shard])
            return self._requeue(shard, _reason(error))
        except RayActorError as error:
            check_cluster()
            if slot.ready:  # the first answer of a dead actor counts for all units that it held
                self._count_failure([shard, *(other for holder, other in self.running.values() if holder is slot)])
                logger.warning(f"{self.config.name}: an actor died while it captioned shard {shard}; Ray restarts it")
                slot.ready, slot.start_at = False, time.monotonic()
            return self._requeue(shard, one_line(error))
        self.failed_attempts.pop(shard, None)
        self.saved_parts.pop(shard, None)
        for result in outcome.done:
            self.failed_units.pop(result.captioner, None)
        refused = outcome.refused.items()  # another try would end alike
        failed = [unit for name, reason in refused for unit in self._give_up(name, shard, reason, (name,))]
        return [*outcome.done, *failed]

    def abandon(self) -> FailedUnit | None:
        """All units that are left, if the pool has no actor and starts none."""
        if not (self.stop_reason and self.busy) or self.slots or self.running:
            return None
        left = _left(len(self.queue), self.more)
        names = self.text_names if self.more else sorted({name for shard in self.queue for name in self.texts[shard]})
        self.queue.clear()
        self.more = False
        return FailedUnit(self.config.name, None, f"{left} not captioned: {self.stop_reason}", tuple(names))

    def drain(self) -> list[Any]:
        """Ask the actors that hold units to save finished captions. Returns the references of the calls."""
        busy = {slot for slot, _ in self.running.values()}
        return [slot.handle.drain.remote() for slot in busy if slot.ready]

    def shutdown(self) -> None:
        """End all actors."""
        for slot in list(self.slots):
            self._release(slot)

    def _request_starts(self) -> None:
        for slot in self.slots:
            if not slot.ready and slot.start_at is not None and slot.start_at <= time.monotonic():
                self.placing[slot.handle.placed.remote()] = slot
                slot.start_at = None

    def _handle_placement(self, slot: ActorSlot, reference: Any) -> None:
        """Start the engine of an actor that has room; call it again later while Ray restarts it."""
        if slot not in self.slots:
            return
        try:
            ray.get(reference)
        except ActorUnavailableError:  # the wait for a machine may take hours, and is no failed start
            check_cluster()
            slot.start_at = time.monotonic() + RETRY_SECONDS
        except (RayActorError, RuntimeEnvSetupError) as error:
            check_cluster()
            self._remove(slot, f"the actor died before its engine started ({one_line(error)})")
        else:
            self.starting[slot.handle.start.remote()] = slot
            slot.deadline = time.monotonic() + self.settings.start_seconds

    def _end_hung_starts(self) -> None:
        """Count starts without an answer in time as failed, and end their processes."""
        for reference, slot in list(self.starting.items()):
            if slot.deadline <= time.monotonic():
                del self.starting[reference]
                reason = f"the engine did not start within {self.settings.start_seconds:,g} s (`start_seconds`)"
                if slot in self.slots:
                    self._count_failed_start(slot, StartFailed(reason, "", REPEATED_STARTS), reason)

    def _count_failed_start(self, slot: ActorSlot, error: Exception | None, reason: str) -> None:
        """Plan another start in a new process, or remove the actor."""
        if slot.may_try_again(error):
            logger.warning(f"{self.config.name}: the engine did not start ({reason}); retrying in a new process")
            end_actor(slot.handle, restart=True)  # this process may hold remains of the failed start
            slot.start_at = time.monotonic() + RETRY_SECONDS
        else:
            self._remove(slot, reason)

    def _replace_removed(self) -> None:
        """Ask for removed actors again, while another engine of the pool works: a fault of all would remove it too."""
        if time.monotonic() < self.replace_at or not self.queue or not any(slot.ready for slot in self.slots):
            return
        self.replace_at = time.monotonic() + REPLACE_SECONDS
        missing = self.target_size() - len(self.slots) - self.idle.released
        if missing > 0 and self.replacements < MAX_REPLACEMENTS:
            self.replacements += 1
            logger.info(
                f"{self.config.name}: asking for {wording.count(missing, 'further actor')} "
                f"(attempt {self.replacements} of {MAX_REPLACEMENTS})"
            )
            for _ in range(missing):
                self.add_actor()

    def _handle_start(self, slot: ActorSlot, reference: Any) -> None:
        """Mark the actor ready, plan another start, or remove the actor."""
        if slot not in self.slots:
            return
        slot.start_at = time.monotonic() + RETRY_SECONDS
        try:
            report: StartReport = ray.get(reference)
        except RayTaskError as error:
            self._count_failed_start(slot, error.cause, _reason(error))
        except RayActorError as error:
            check_cluster()
            slot.lost_starts += 1
            if slot.lost_starts == MAX_LOST_STARTS or isinstance(error, ActorDiedError):
                self._remove(slot, f"the actor died while its engine was starting ({one_line(error)})")
        else:
            slot.ready, slot.start_at, slot.failures, slot.lost_starts = True, None, [], 0
            self.replacements = 0
            logger.info(f"{self.config.name}: engine ready: {report}")

    def _remove(self, slot: ActorSlot, reason: str) -> None:
        """Release an actor whose engine does not start. The pool stops if it was the last one."""
        self._release(slot)
        if self.slots:
            logger.warning(f"{self.config.name}: an actor is removed: {reason}")
        else:
            self.stop_reason = reason

    def _release(self, slot: ActorSlot) -> None:
        self.slots.remove(slot)
        end_actor(slot.handle)
        if self.budget:
            self.budget.give_back(slot.cpus)

    def _count_failure(self, shards: Sequence[int]) -> None:
        """Count one failure of the units that one actor held. New parts of any of them restart the count of all."""
        parts = {shard: self._parts(shard) for shard in shards}
        progressed = any(self.saved_parts.get(shard) != names for shard, names in parts.items())
        self.saved_parts.update(parts)
        for shard in shards:
            self.failed_attempts[shard] = 1 if progressed else self.failed_attempts[shard] + 1

    def _parts(self, shard: int) -> list[str]:
        """What the storage has of a unit that is not finished."""
        folders = [self.run.caption_parts(name, shard) for name in self.texts[shard]]
        return [name for folder in folders for name in storage.list_names(folder)]

    def _requeue(self, shard: int, reason: str) -> list[UnitResult | FailedUnit]:
        """Return the unit to the queue, or report it after MAX_ATTEMPTS failures in a row without progress."""
        if self.failed_attempts[shard] < MAX_ATTEMPTS:
            self.queue.appendleft(shard)
            return []
        return [*self._give_up(self.config.name, shard, reason, self.texts[shard])]

    def _give_up(self, name: str, shard: int, reason: str, texts: tuple[str, ...]) -> Iterator[FailedUnit]:
        """Report texts of a shard that failed. A text that failed in MAX_FAILED_UNITS in a row is not tried any more.

        Args:
            name: The captioner, or its text.
            shard: The shard.
            reason: Why it failed.
            texts: Names of the texts that failed.
        """
        yield FailedUnit(name, shard, reason, texts)
        self.failed_units.update(texts)
        stopped = tuple(text for text in texts if self.failed_units[text] == MAX_FAILED_UNITS)
        if stopped:
            yield from self._stop(stopped, f"{MAX_FAILED_UNITS} shards in a row failed, the last one with: {reason}")

    def _stop(self, texts: tuple[str, ...], reason: str) -> Iterator[FailedUnit]:
        """Leave texts out of the units in the queue. The pool stops if they are all that is left."""
        unfinished = [*self.queue, *(shard for _, shard in self.running.values())]
        names = {name for shard in unfinished for name in self.texts[shard]}
        to_come = set(self.text_names) - self.stopped_texts if self.more else set()
        self.stopped_texts.update(texts)
        if (names | to_come).issubset(texts):
            self.stop_reason = reason
            self.shutdown()
            return
        for text in texts:
            left = [shard for shard in self.queue if text in self.texts[shard]]
            for shard in left:
                self.texts[shard] = tuple(name for name in self.texts[shard] if name != text)
            if left or self.more:
                yield FailedUnit(text, None, f"{_left(len(left), self.more)} not captioned: {reason}", (text,))
        self.queue = deque(shard for shard in self.queue if self.texts[shard])


def _left(shards: int, more: bool) -> str:
    """The shards that a pool or a text leaves."""
    left = wording.count(shards, "shard")
    return f"{left}, and those that come later," if more else left


def create_actor(pool: ActorPool, num_cpus: float) -> Any:
    """Create an actor of a pool that reserves this number of CPUs. Returns its handle."""
    settings, num_gpus = pool.settings, pool.num_gpus
    actor_class: Any = ray.remote(CaptionActor)
    actor_class = actor_class.options(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        accelerator_type=settings.accelerator_type,
        resources=dict(settings.resources),
        label_selector=dict(settings.labels),
        max_concurrency=2 * UNITS_PER_ACTOR + 2,
        runtime_env=_runtime_env(num_gpus),
        max_restarts=-1,  # a run of weeks loses many actors; the pool counts the failures that end it
    )
    return actor_class.remote(pool.run.url, pool.config, settings, pool.text_names)


def end_actor(handle: Any, restart: bool = False) -> None:
    """End the process of an actor. Ray starts it again in a new process if `restart` is set."""
    ray.kill(handle, no_restart=not restart)


def run_pools(
    pools: Sequence[ActorPool],
    on_done: Callable[[str, Sequence[UnitResult]], None],
    on_failed: Callable[[FailedUnit], None],
    on_tick: Callable[[], None] = lambda: None,
) -> None:
    """Run the pools until no unit is left and none may come.

    Args:
        pools: The pools, which share the cluster.
        on_done: Called once with the captioner's name and the results of the texts that one unit has finished.
        on_failed: Called once for each failed unit.
        on_tick: Called about once per second, to show the progress of unfinished units and to extend the pools.
    """
    budget = CpuBudget(lambda: float(ray.cluster_resources().get("CPU", 0)), any(pool.more for pool in pools))
    for pool in pools:
        pool.budget = budget
    try:
        for pool in pools:
            pool.check_placement()
        for pool in pools:
            logger.info(f"{pool.config.name}: asks for {pool.wish}; the cluster has {_cluster_resources()}")
        _create_actors(pools)
        waiting_since: float | None = time.monotonic()
        while any(pool.busy for pool in pools):
            raise_if_stopped()
            for pool in pools:
                pool.dispatch(any(other.placing for other in pools if other is not pool))
            on_tick()
            for pool, results in _collect_answers(pools):
                if done := [result for result in results if isinstance(result, UnitResult)]:
                    on_done(pool.config.name, done)
                for failed in [result for result in results if isinstance(result, FailedUnit)]:
                    on_failed(failed)
            if any(slot.ready for pool in pools for slot in pool.slots):
                waiting_since = None
            elif waiting_since and time.monotonic() - waiting_since > WAIT_WARNING_SECONDS:
                waiting_since = None
                wishes = "; ".join(f"{pool.config.name} asks for {pool.wish}" for pool in pools if pool.busy)
                logger.warning(
                    f"no engine is ready after {WAIT_WARNING_SECONDS:.0f} s: {wishes}; the cluster has "
                    f"{_cluster_resources()}"
                )
    finally:
        if draining := [reference for pool in pools for reference in pool.drain()]:
            ray.wait(draining, num_returns=len(draining), timeout=DRAIN_SECONDS)
        for pool in pools:
            pool.shutdown()


def _create_actors(pools: Sequence[ActorPool]) -> None:
    """Create each pool's `min_actors` first, then the others in turns. Ray places actors in the order of creation."""
    order = sorted(
        (turn >= pool.settings.min_actors, turn, number)
        for number, pool in enumerate(pools)
        for turn in range(0 if pool.stop_reason else pool.target_size())
    )
    for _, _, number in order:
        pools[number].add_actor()


def _collect_answers(pools: Sequence[ActorPool]) -> Iterator[tuple[ActorPool, list[UnitResult | FailedUnit]]]:
    """Wait about a second at most for answers, and yield what they end."""
    owner = {reference: pool for pool in pools for reference in (*pool.placing, *pool.starting, *pool.running)}
    if owner:
        ray.wait(list(owner), num_returns=1, timeout=1.0)
        # All that are there: a call looks at every reference, and there are two for each GPU of the cluster.
        answered, _ = ray.wait(list(owner), num_returns=len(owner), timeout=0)
    else:
        answered = []
        time.sleep(0.2)
    for reference in answered:
        if results := owner[reference].collect(reference):
            yield owner[reference], results
    for pool in pools:
        if abandoned := pool.abandon():
            yield pool, [abandoned]


def _runtime_env(num_gpus: float) -> dict[str, Any]:
    """The runtime environment of an actor.

    Ray sets OMP_NUM_THREADS to the actor's CPUs. Those serve its decoding threads where a GPU computes: more threads of
    torch would only spin while they wait.
    """
    return {"env_vars": {"OMP_NUM_THREADS": "1"}} if num_gpus else {}


def _cluster_resources() -> str:
    """The cluster's resources on one line, without memory and without the resources that name a node."""
    resources = {name: amount for name, amount in ray.cluster_resources().items() if not name.startswith("node:")}
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()) if "memory" not in name)


def _reason(error: RayTaskError) -> str:
    if isinstance(error.cause, StartFailed):
        return str(error.cause)
    return one_line(error.cause if isinstance(error.cause, Exception) else error)
