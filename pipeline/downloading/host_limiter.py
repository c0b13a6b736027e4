"""What a shard learns of each host while it is fetched: how many fetches are under way there, and whether it answers.

A thread that waits for a host is lost to all other hosts, so every wait here has an end. Threads share a `Hosts`.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lotlip_data.pipeline.downloading import failures as reasons
from lotlip_data.pipeline.downloading.failures import FetchError


@dataclass
class _Host:
    changed: threading.Condition
    under_way: int = 0
    failures: int = 0
    """In a row, of those that say something of the host."""
    last_failure: str = ""
    paused_until: float = 0.0


class Hosts:
    """At most `per_host` fetches from a host at a time, and none any more after `failures` failures in a row."""

    def __init__(self, per_host: int, failures: int) -> None:
        self._per_host, self._failures = per_host, failures
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()

    @contextmanager
    def place(self, host: str, patience: float) -> Iterator[None]:
        """One of the host's places, as long as the block lasts.

        Raises Refusal where the host is down, or where no place comes free within `patience` seconds.
        """
        with self._lock:
            one = self._hosts.get(host)
            if one is None:
                one = self._hosts[host] = _Host(threading.Condition(self._lock))
            self._wait(one, time.monotonic() + patience)
            one.under_way += 1
        try:
            yield
        finally:
            with self._lock:
                one.under_way -= 1
                one.changed.notify()

    def _wait(self, one: _Host, end: float) -> None:
        while True:
            if one.failures >= self._failures:
                raise FetchError(
                    reasons.HOST_DOWN, f"{one.failures} failures in a row, the last one: {one.last_failure}"
                )
            now = time.monotonic()
            if one.under_way < self._per_host and now >= one.paused_until:
                return
            if now >= end:
                raise FetchError(reasons.HOST_BUSY, "no place came free; `per_host` is how many there are")
            waits_for_pause = one.under_way < self._per_host
            one.changed.wait((min(end, one.paused_until) if waits_for_pause else end) - now)

    def answered(self, host: str) -> None:
        """The host has answered, whatever it said."""
        with self._lock:
            self._hosts[host].failures = 0

    def failed(self, host: str, refusal: FetchError, longest: float) -> None:
        """A fetch from the host has failed. It gets the pause that it asks for, if that is no longer than `longest`."""
        with self._lock:
            one = self._hosts[host]
            if not reasons.of_the_host(refusal.reason):
                one.failures = 0
                return
            one.failures += 1
            one.last_failure = refusal.reason
            if refusal.wait is not None and refusal.wait <= longest:
                one.paused_until = max(one.paused_until, time.monotonic() + refusal.wait)
            if one.failures >= self._failures:
                one.changed.notify_all()
