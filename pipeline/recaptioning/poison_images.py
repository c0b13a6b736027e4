"""Finding the image that kills its captioner, when nothing in memory is left to remember it.

Before an attempt at a unit hands images to the engine, it names them in an object beside the unit's parts. An object
that an ended attempt left behind therefore names its suspects: images that were under way, or finished and not saved,
when its process died. The next attempt tries these by themselves, a few at a time and each few saved before the next,
and those that a few died with one by one. What has died alone once is tried again when all else of the unit is done: a
kill from outside may have met it, and what kills again soon after a start would meet it again. Twice makes it guilty.
"""

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from lotlip_data.manifests import storage

FEW = 16
"""Suspects tried at a time at first: nearly as fast as one, and most kills are nobody's fault."""

KILLS = 2
"""Deaths with an image alone that make it guilty."""

MAX_GUILTY = 16
"""More guilty images than this in one unit are taken for an engine that is at fault."""

_PREFIX = "suspects-"


@dataclass(frozen=True)
class Suspicion:
    """What earlier attempts tell of the images that they left unfinished, by uid."""

    few: frozenset[str] = frozenset()
    """To be tried a few at a time."""
    alone: frozenset[str] = frozenset()
    """To be tried one by one."""
    last: frozenset[str] = frozenset()
    """To be tried one by one after all else of the unit."""
    guilty: dict[str, str] = field(default_factory=dict)
    """Why these are not tried again."""


def find_suspects(folder: str, settled: set[str]) -> Suspicion:
    """Reads what ended attempts left in a unit's parts folder; `settled` are the uids that parts hold."""
    attempts, causes = [], []
    for name in storage.list_names(folder):
        if name.startswith(_PREFIX) and (left := _read(storage.join(folder, name))):
            uids, cause = left
            attempts.append(uids)
            causes.append(cause)
    few, alone, last, guilty = set(), set(), set(), {}
    for uid in set().union(*attempts) - settled:
        died_in = [attempt for attempt in attempts if uid in attempt]
        smallest = min(map(len, died_in))
        alone_in = [cause for attempt, cause in zip(attempts, causes, strict=True) if attempt == {uid}]
        if len(alone_in) >= KILLS:
            times = f"{len(died_in)} times with this image, {len(alone_in)} of them with it alone"
            guilty[uid] = f"the engine's process ended {times}: {alone_in[-1]}"
        elif alone_in:
            last.add(uid)
        elif smallest <= FEW:
            alone.add(uid)
        else:
            few.add(uid)
    return Suspicion(frozenset(few), frozenset(alone), frozenset(last), guilty)


def _read(url: str) -> tuple[set[str], str] | None:
    try:
        told = json.loads(storage.read_bytes(url))
        return set(told["uids"]), str(told["cause"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # removed by another driver, or torn by a power cut
        return None


class InFlightLog:
    """What one attempt has under way. Called from the reading thread and from the event loop."""

    def __init__(self, folder: str, attempt: str) -> None:
        self._url = storage.join(folder, f"{_PREFIX}{attempt}.json")
        self._uids: set[str] = set()
        self._ended = False
        self._lock = threading.Lock()

    def expect(self, uids: Iterable[str]) -> None:
        """These are about to be handed to the engine. Returns when the storage knows it."""
        with self._lock:
            self._uids.update(uids)
            if not self._ended:
                self._tell("killed, or crashed without a word")

    def settle(self, uids: Iterable[str]) -> None:
        """These are saved; the storage is told with the next `expect`."""
        with self._lock:
            self._uids.difference_update(uids)

    def blame(self, cause: str) -> None:
        """The engine has died; what is still under way is suspect."""
        with self._lock:
            self._ended = True
            if self._uids:
                self._tell(cause)

    def withdraw(self) -> None:
        """The attempt ends by no fault of an image."""
        with self._lock:
            self._ended = True
            storage.remove(self._url)

    def _tell(self, cause: str) -> None:
        storage.replace(self._url, json.dumps({"uids": sorted(self._uids), "cause": cause}).encode())
