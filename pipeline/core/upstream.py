"""What stands before a stage: stages that may still commit shards while it works.

A stage lists its input again and again. It takes what is new, until the stages before it have ended. Whether they have
is asked before each listing, so the last listing has everything that they committed. All of it is read from the
storage, so the stages may be threads of one process, or processes on machines that share the storage alone.
"""

import enum
import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from lotlip_data.pipeline.core.stage_threads import pause

logger = logging.getLogger(__name__)

Listing = TypeVar("Listing")

POLL_SECONDS = 2.0
"""Shortest interval between two listings."""
LISTING_SHARE = 20
"""A listing that takes longer, as on an object storage with many shards, is made after this many times its duration."""
REMINDER_SECONDS = 600.0
"""Interval at which a stage says again what it waits for."""


class NotYet(enum.Enum):
    """The type of NOT_YET."""

    NOT_YET = enum.auto()


NOT_YET: Final = NotYet.NOT_YET
"""An item of a stage that waits: there is none now, but there may be one later."""


class Upstream:
    """The stages before a stage.

    Args:
        find_missing: Says what they have not committed, such as `the download of 3 of 12 shards`; empty once they have
            ended.
        stage: The stage that waits, for the lines that say so; empty for no lines.
    """

    def __init__(self, find_missing: Callable[[], str], stage: str = "") -> None:
        self._find_missing, self._stage = find_missing, stage
        self.ended = False
        """Whether the last listing has all that will come."""
        self._next_look = 0.0
        self._missing = ""
        self._said_at = self._changed_at = float("-inf")

    def is_due(self) -> bool:
        """Whether it is time for the next listing."""
        return not self.ended and time.monotonic() >= self._next_look

    def look(self, list_input: Callable[[], Listing]) -> Listing:
        """Call `list_input`, and return what it returns. Sets `ended` if that was the last time."""
        began = time.monotonic()
        missing = self._find_missing()
        listing = list_input()
        self.ended = not missing
        now = time.monotonic()
        self._next_look = now + max(POLL_SECONDS, LISTING_SHARE * (now - began))
        self._say(missing, now)
        return listing

    def wait(self, until: Callable[[], bool] = lambda: False) -> None:
        """Wait until `until` is true or the stages before have ended."""
        while not (self.look(until) or self.ended):
            pause(max(0.0, self._next_look - time.monotonic()))

    def _say(self, missing: str, now: float) -> None:
        """Say what the stage waits for: once, and then whenever nothing has come for a while."""
        if missing != self._missing:
            self._missing, self._changed_at = missing, now
        if not (self._stage and missing):
            return
        if self._said_at == float("-inf"):
            self._said_at = now
            logger.info(f"{self._stage}: waits for {missing}")
        elif now >= max(self._said_at, self._changed_at) + REMINDER_SECONDS:
            self._said_at = now
            minutes = (now - self._changed_at) / 60
            logger.info(
                f"{self._stage}: still waits for {missing}; nothing has come for {minutes:,.0f} minutes. Ctrl-C stops "
                "the wait; what is committed is kept"
            )
