"""How long an actor works on each unit: it has several at hand at once, and an hour of it is to be counted once."""

import time
from dataclasses import dataclass


@dataclass(eq=False)
class Share:
    """A unit's part of the actor's time, in seconds; it grows while the unit is at hand."""

    seconds: float = 0.0


class Meter:
    """Shares time evenly among the units at hand, so that their parts add up to the time that there were any."""

    def __init__(self) -> None:
        self._at_hand: set[Share] = set()
        self._until = time.monotonic()

    def join(self) -> Share:
        """Of a unit that is at hand from now on."""
        self._pass()
        self._at_hand.add(share := Share())
        return share

    def leave(self, share: Share) -> None:
        """It is no more at hand, and keeps what it has."""
        self._pass()
        self._at_hand.discard(share)

    def spent(self, share: Share) -> float:
        """Seconds until now."""
        self._pass()
        return share.seconds

    def _pass(self) -> None:
        now = time.monotonic()
        for share in self._at_hand:
            share.seconds += (now - self._until) / len(self._at_hand)
        self._until = now
