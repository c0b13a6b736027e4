"""How long an actor and its GPUs work on each unit: an actor has several at hand, and its hour is counted once."""

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Time of actors, and of GPUs: of two in one actor each counts, of half a one half its time. Both in seconds."""

    actor: float = 0.0
    gpu: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.actor + other.actor, self.gpu + other.gpu)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.actor - other.actor, self.gpu - other.gpu)

    @property
    def milliseconds(self) -> tuple[int, int]:
        """As a `ledger.Tally` has them."""
        return round(1000 * self.actor), round(1000 * self.gpu)


@dataclass(eq=False)
class UsageShare:
    """A unit's part of the actor's time, in seconds; it grows while the unit is at hand."""

    seconds: float = 0.0


class UsageMeter:
    """Shares time evenly among the units at hand, so that their parts add up to the time that there were any.

    gpus: of the actor.
    """

    def __init__(self, gpus: float = 0.0) -> None:
        self._gpus = gpus
        self._at_hand: set[UsageShare] = set()
        self._until = time.monotonic()

    def join(self) -> UsageShare:
        """Of a unit that is at hand from now on."""
        self._pass()
        self._at_hand.add(share := UsageShare())
        return share

    def leave(self, share: UsageShare) -> None:
        """It is no more at hand, and keeps what it has."""
        self._pass()
        self._at_hand.discard(share)

    def spent(self, share: UsageShare) -> Usage:
        """Until now."""
        self._pass()
        return Usage(share.seconds, share.seconds * self._gpus)

    def _pass(self) -> None:
        now = time.monotonic()
        for share in self._at_hand:
            share.seconds += (now - self._until) / len(self._at_hand)
        self._until = now
