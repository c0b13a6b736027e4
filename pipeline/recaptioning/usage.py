"""How much actor and GPU time each text of a shard takes. An actor works on several, but its time is counted once."""

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Time in seconds. `gpu` is multiplied by the number of GPUs: two count twice, half a GPU counts half."""

    actor: float = 0.0
    gpu: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.actor + other.actor, self.gpu + other.gpu)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.actor - other.actor, self.gpu - other.gpu)

    @property
    def milliseconds(self) -> tuple[int, int]:
        """Actor and GPU time in milliseconds, as `ledger.WorkRecord` stores them."""
        return round(1000 * self.actor), round(1000 * self.gpu)


@dataclass(eq=False)
class UsageShare:
    """The share of one text of a shard in the actor's time, in seconds. It grows while the text is active."""

    seconds: float = 0.0


class UsageMeter:
    """Divides time evenly among the active texts of shards, so that their shares add up to the time with any active.

    The texts of one captioner are made together, so each has the same share of the time in which its image was read,
    prepared and encoded for all of them.

    Args:
        gpus: GPUs of the actor.
    """

    def __init__(self, gpus: float = 0.0) -> None:
        self._gpus = gpus
        self._active: set[UsageShare] = set()
        self._counted_until = time.monotonic()

    def join(self) -> UsageShare:
        """Start the share of a text that becomes active."""
        self._advance()
        self._active.add(share := UsageShare())
        return share

    def leave(self, share: UsageShare) -> None:
        """The text is no longer active. Its share stops growing."""
        self._advance()
        self._active.discard(share)

    def usage_of(self, share: UsageShare) -> Usage:
        """The usage of a text until now."""
        self._advance()
        return Usage(share.seconds, share.seconds * self._gpus)

    def _advance(self) -> None:
        now = time.monotonic()
        for share in self._active:
            share.seconds += (now - self._counted_until) / len(self._active)
        self._counted_until = now
