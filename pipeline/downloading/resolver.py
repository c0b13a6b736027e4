"""Looks up the addresses of hosts, and keeps the answers for a short time.

A list names the same host again and again, and the threads of a shard ask for many hosts at once. Each name is looked
up by one thread, while the others that need it wait for the answer. Different names are looked up at the same time. The
cache holds addresses only: whether one may be connected to is checked at each connection.
"""

import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

KEPT_SECONDS = 60.0
"""How long an answer is used. The system does not tell how long the name server allows."""

FAILED_SECONDS = 5.0
"""How long a name that does not resolve is not looked up again."""

MAX_NAMES = 10_000
"""Names in the cache. The one that has not been used for the longest time makes room."""

Address = tuple[int, Any]
"""The family of a socket, and its address: the IP address and the port come first."""


def look_up(host: str) -> list[Address]:
    """Ask the system for the addresses of a host, with port 0. Raises OSError if the name does not resolve."""
    return [(family, address) for family, *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)]


@dataclass
class _Entry:
    answer: "Future[list[Address]]"
    expires: float = float("inf")
    """When the name is looked up again. Infinite while it is being looked up."""


class Resolver:
    """The addresses of hosts. Threads share it.

    Args:
        lookup: Looks a name up, and raises OSError if it does not resolve.
        clock: The time in seconds.
    """

    def __init__(
        self, lookup: Callable[[str], list[Address]] = look_up, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lookup, self._clock = lookup, clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def addresses(self, host: str, max_wait: float) -> list[Address]:
        """The addresses of a host, in the order in which to try them.

        Args:
            host: A name or an IP address.
            max_wait: Seconds to wait for an answer that another thread is looking up.

        Raises:
            OSError: The name does not resolve. TimeoutError: no answer within `max_wait` seconds.
        """
        with self._lock:
            entry = self._entries.get(host)
            is_new = entry is None or self._clock() >= entry.expires
            if entry is None or is_new:
                entry = self._entries[host] = _Entry(Future())
            self._entries.move_to_end(host)
            if len(self._entries) > MAX_NAMES:
                self._entries.popitem(last=False)
        if is_new:
            self._fill(entry, host)
        return entry.answer.result(max_wait)

    def forget(self, host: str) -> None:
        """Look the host up again next time, because it cannot be reached at its addresses."""
        with self._lock:
            entry = self._entries.get(host)
            if entry is not None and entry.answer.done():
                del self._entries[host]

    def _fill(self, entry: _Entry, host: str) -> None:
        try:
            addresses = self._lookup(host)
        except Exception as error:  # noqa: BLE001 - all threads that wait for the answer raise it
            entry.expires = self._clock() + FAILED_SECONDS
            entry.answer.set_exception(error)
        else:
            entry.expires = self._clock() + KEPT_SECONDS
            entry.answer.set_result(addresses)
