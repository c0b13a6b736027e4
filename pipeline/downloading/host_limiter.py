"""Limits per host while a shard downloads: requests in flight, pauses that the host asks for, and a circuit breaker.

The number of requests in flight adapts as in TCP: it grows by one with each answer until the host refuses a request or
leaves one without an answer. Then it shrinks, and from then on grows by one when all requests in flight were answered.
The requests that were in flight when it shrank tell nothing new, so they do not change it again.

A thread that waits for one host cannot serve others, so every wait has an end. Threads share one `HostLimiter`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError

REFUSED_FACTOR = 0.5
"""By how much the limit of a host shrinks when it answers that it has too many requests (429, 503)."""

SILENT_FACTOR = 0.75
"""By how much it shrinks after a timeout or a lost connection, for which one image can be to blame as well."""

_REFUSED = frozenset({failures.http_reason(429), failures.http_reason(503)})
_UNANSWERED = frozenset(
    {failures.TIMEOUT, failures.REFUSED, failures.LOST, failures.UNREACHABLE, failures.NOT_RESOLVED, failures.TLS}
    | {failures.NOT_ALLOWED}
)


@dataclass
class _HostState:
    changed: threading.Condition
    limit: float
    """Its whole part is the number of requests that may be in flight."""
    in_flight: int = 0
    shrinks: int = 0
    """How often the limit has shrunk."""
    has_answered: bool = False
    failures: int = 0
    """Consecutive failures that concern the host (`failures.is_host_failure`)."""
    tolerated: int = 0
    """How many of them do not count: those of requests that only the growth of the limit has put in flight."""
    last_failure: str = ""
    paused_until: float = 0.0


@dataclass(frozen=True)
class Slot:
    """One request in flight."""

    state: _HostState
    shrinks: int
    """How often the limit had shrunk when the request was sent."""
    is_additional: bool
    """Whether the request is in flight only because the limit has grown."""

    def is_hopeless(self, error: FetchError) -> bool:
        """Whether another attempt at once only waits again: the host has not answered any request so far."""
        return error.reason == failures.TIMEOUT and not self.state.has_answered

    def is_refused(self, error: FetchError) -> bool:
        """Whether the host refused a request that was sent only because the limit had grown."""
        return self.is_additional and error.reason in _REFUSED


class HostLimiter:
    """Limits the requests to each host.

    Args:
        start: Requests that may be in flight at first.
        most: Requests that may ever be in flight.
        failures: Consecutive failures after which no further request is sent.
        clock: The time in seconds.
    """

    def __init__(self, start: int, most: int, failures: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._start, self._most, self._failures, self._clock = min(start, most), most, failures, clock
        self._hosts: dict[str, _HostState] = {}
        self._lock = threading.Lock()

    @contextmanager
    def slot(self, host: str, max_wait: float) -> Iterator[Slot]:
        """Hold one of the host's request slots while the block runs.

        Raises:
            FetchError: The host is down, or no slot becomes free within `max_wait` seconds.
        """
        with self._lock:
            state = self._hosts.get(host)
            if state is None:
                state = self._hosts[host] = _HostState(threading.Condition(self._lock), self._start)
            self._wait(state, self._clock() + max_wait)
            state.in_flight += 1
            slot = Slot(state, state.shrinks, state.in_flight > self._start)
        try:
            yield slot
        finally:
            with self._lock:
                state.in_flight -= 1
                state.changed.notify()

    def _wait(self, state: _HostState, end: float) -> None:
        while True:
            if self._is_down(state):
                raise FetchError(
                    failures.HOST_DOWN, f"{state.failures} consecutive failures, the last one: {state.last_failure}"
                )
            now = self._clock()
            has_room = state.in_flight < int(state.limit)
            if has_room and now >= state.paused_until:
                return
            if now >= end:
                raise FetchError(
                    failures.HOST_BUSY, "no request slot became free; `download.max_per_host` limits their number"
                )
            state.changed.wait((min(end, state.paused_until) if has_room else end) - now)

    def _is_down(self, state: _HostState) -> bool:
        return state.failures - state.tolerated >= self._failures

    def record_answer(self, slot: Slot) -> None:
        """Record that the host has sent what was requested, or a redirect."""
        with self._lock:
            state = slot.state
            state.failures, state.has_answered = 0, True
            is_used = 2 * state.in_flight > state.limit  # answers that arrive together still let it double
            if is_used and slot.shrinks == state.shrinks and state.limit < self._most:
                state.limit = min(self._most, state.limit + (1 / state.limit if state.shrinks else 1))
                state.changed.notify()  # the end of this request notifies another thread

    def record_failure(self, slot: Slot, error: FetchError, max_pause: float) -> None:
        """Record a failed request, and the pause that the host asks for if it is at most `max_pause` seconds."""
        with self._lock:
            state = slot.state
            state.has_answered |= error.reason not in _UNANSWERED
            if not failures.is_host_failure(error.reason):
                state.failures = 0
                return
            if not state.failures:
                state.tolerated = max(0, state.in_flight - self._start)
            state.failures += 1
            state.last_failure = error.reason
            if state.has_answered and slot.shrinks == state.shrinks:
                state.limit = max(1, state.limit * (REFUSED_FACTOR if error.reason in _REFUSED else SILENT_FACTOR))
                state.shrinks += 1
            if error.retry_after is not None and error.retry_after <= max_pause:
                state.paused_until = max(state.paused_until, self._clock() + error.retry_after)
            if self._is_down(state):
                state.changed.notify_all()
