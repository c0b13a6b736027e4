"""The actors of a pool as its driver sees them: the state of their engines, what they hold and for how long."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from lotlip_data.pipeline.recaptioning.actor import MAX_FAILED_STARTS, REPEATED_STARTS, StartFailed

Slot = TypeVar("Slot")

IDLE_SECONDS = 300.0
"""Time that an engine waits for a shard before its actor is released: a new start takes about as long."""
YIELD_SECONDS = 30.0
"""The same where another pool waits for room."""
CPUS_OF_OTHERS = 1.0
"""CPUs of the cluster that actors leave to the tasks of other stages, without which no further shard would come."""


@dataclass(frozen=True)
class FailedUnit:
    """A shard that failed. Without a shard: all units that a stopped pool leaves."""

    captioner: str
    """Name of the captioner, or of its one text that failed."""
    shard: int | None
    reason: str
    texts: tuple[str, ...]
    """Names of the texts that failed."""


@dataclass(eq=False)
class ActorSlot:
    """An actor of a pool and the state of its engine."""

    handle: Any
    cpus: float = 0.0
    """CPUs that it reserves."""
    ready: bool = False
    start_at: float | None = 0.0
    """When to call the actor, in monotonic time; None while a call is unanswered and once the engine is ready."""
    deadline: float = float("inf")
    """Until when a call of `start` must be answered, in monotonic time."""
    failures: list[str] = field(default_factory=list)
    """Reasons of the starts in a row at which the engine raised an error."""
    lost_starts: int = 0
    """Starts in a row at which the actor died."""

    def may_try_again(self, error: Exception | None) -> bool:
        """Count a failed start. Returns whether another one may succeed."""
        reason, tries = (error.reason, error.tries) if isinstance(error, StartFailed) else (str(error), REPEATED_STARTS)
        self.failures.append(reason)
        return len(self.failures) < MAX_FAILED_STARTS and self.failures.count(reason) < tries


class CpuBudget:
    """The CPUs that the actors of all pools may reserve.

    Args:
        cluster_cpus: The CPUs of the cluster now.
        is_shared: Whether tasks of other stages run beside the actors.
    """

    def __init__(self, cluster_cpus: Callable[[], float], is_shared: bool) -> None:
        self._cluster_cpus, self._is_shared = cluster_cpus, is_shared
        self._taken = 0.0

    def take(self, wanted: float) -> float:
        """The CPUs that a new actor reserves: those wanted, or none where they would be the last ones.

        A cluster without any CPU gets its machines from an autoscaler, which the actor is to ask for them.
        """
        cpus = self._cluster_cpus()
        is_last = self._is_shared and cpus > 0 and self._taken + wanted > cpus - CPUS_OF_OTHERS
        reserved = 0.0 if is_last else wanted
        self._taken += reserved
        return reserved

    def give_back(self, cpus: float) -> None:
        """Count the CPUs of an actor that is released."""
        self._taken -= cpus


class IdleActors(Generic[Slot]):
    """Since when actors have had no shard, and how many were released for it."""

    def __init__(self) -> None:
        self._since: dict[Slot, float] = {}
        self.released = 0
        """Actors that were released while they were idle, and may be asked for again."""

    def note(self, idle: Iterable[Slot]) -> None:
        """Note which actors have an engine and no shard now."""
        now = time.monotonic()
        self._since = {slot: self._since.get(slot, now) for slot in idle}

    def expired(self, is_room_wanted: bool) -> list[Slot]:
        """The actors that have waited too long. They count as released.

        Args:
            is_room_wanted: Whether another pool waits for room.
        """
        limit = time.monotonic() - (YIELD_SECONDS if is_room_wanted else IDLE_SECONDS)
        slots = [slot for slot, since in self._since.items() if since <= limit]
        self.released += len(slots)
        return slots
