"""Finds images that kill their captioner, although the process that could remember them is dead.

Before an attempt at a shard sends images to the engine, it names them in an object beside the shard's parts. An object
that a dead attempt left behind names its suspects: images that were in flight, or finished but not saved, when the
process died. The next attempt tries suspects in small batches with nothing else in flight, and saves each batch before
the next. Suspects that died in a small batch are tried one by one. An image that has died alone once is tried again
after all other images of the shard: a kill from outside can have hit it, and a kill that recurs soon after a start
would hit it again. An image that has died alone twice is poison.
"""

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lotlip_data.manifests import storage

SMALL_BATCH_SIZE = 16
"""Suspects tried at a time at first: nearly as fast per batch as one, and most kills are no image's fault."""

MIN_SOLO_DEATHS = 2
"""Deaths with an image alone that make it poison."""

MAX_POISON_IMAGES = 16
"""More poison images than this in one shard point to the engine."""

_PREFIX = "suspects-"


@dataclass(frozen=True)
class Suspects:
    """What dead attempts say about the images that they left unfinished, by uid."""

    small_batch: frozenset[str] = frozenset()
    """To be tried in small batches."""
    single: frozenset[str] = frozenset()
    """To be tried one by one."""
    deferred: frozenset[str] = frozenset()
    """To be tried one by one after all other images of the shard."""
    poison: dict[str, str] = field(default_factory=dict)
    """Not to be tried again: uid → reason."""


def find_suspects(folders: Sequence[str], saved: set[str]) -> Suspects:
    """Read what dead attempts left in the parts folders of a shard.

    Args:
        folders: The parts folders, one for each text that is not committed.
        saved: The uids that the parts of all texts hold.
    """
    attempts, causes = [], []
    paths = (storage.join(folder, name) for folder in folders for name in storage.list_names(folder, ".json"))
    for path in paths:
        if path.rpartition("/")[2].startswith(_PREFIX) and (log := _read(path)):
            uids, cause = log
            attempts.append(uids)
            causes.append(cause)
    small_batch, single, deferred, poison = set(), set(), set(), {}
    for uid in set().union(*attempts) - saved:
        deaths = [attempt for attempt in attempts if uid in attempt]
        smallest = min(map(len, deaths))
        solo_causes = [cause for attempt, cause in zip(attempts, causes, strict=True) if attempt == {uid}]
        if len(solo_causes) >= MIN_SOLO_DEATHS:
            counts = f"{len(deaths)} times with this image, {len(solo_causes)} of them with it alone"
            poison[uid] = f"the engine's process ended {counts}: {solo_causes[-1]}"
        elif solo_causes:
            deferred.add(uid)
        elif smallest <= SMALL_BATCH_SIZE:
            single.add(uid)
        else:
            small_batch.add(uid)
    return Suspects(frozenset(small_batch), frozenset(single), frozenset(deferred), poison)


def _read(url: str) -> tuple[set[str], str] | None:
    try:
        content = json.loads(storage.read_bytes(url))
        return set(content["uids"]), str(content["cause"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # removed by another driver, or torn by a power cut
        return None


class InFlightLog:
    """The images that one attempt has in flight, in the storage. The reading thread and the event loop call it."""

    def __init__(self, folder: str, attempt: str) -> None:
        self._url = storage.join(folder, f"{_PREFIX}{attempt}.json")
        self._uids: set[str] = set()
        self._ended = False
        self._lock = threading.Lock()

    def add(self, uids: Iterable[str]) -> None:
        """Name images that are about to be sent to the engine. Returns once the storage has them."""
        with self._lock:
            self._uids.update(uids)
            if not self._ended:
                self._write("killed, or crashed without a message")

    def remove(self, uids: Iterable[str]) -> None:
        """Drop images whose captions are saved. The next `add` writes this to the storage."""
        with self._lock:
            self._uids.difference_update(uids)

    def record_death(self, cause: str) -> None:
        """The engine has died: the images still in flight are suspects."""
        with self._lock:
            self._ended = True
            if self._uids:
                self._write(cause)

    def withdraw(self) -> None:
        """The attempt ends for a reason that is no image's fault."""
        with self._lock:
            self._ended = True
            storage.remove(self._url)

    def _write(self, cause: str) -> None:
        storage.replace(self._url, json.dumps({"uids": sorted(self._uids), "cause": cause}).encode())
