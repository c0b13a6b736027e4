"""Limits per host while a shard downloads: requests in flight, pauses that the host asks for, and a circuit breaker.

A thread that waits for one host cannot serve others, so every wait has an end. Threads share one `HostLimiter`.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError


@dataclass
class _HostState:
    changed: threading.Condition
    in_flight: int = 0
    failures: int = 0
    """Consecutive failures that concern the host (`failures.is_host_failure`)."""
    last_failure: str = ""
    paused_until: float = 0.0


class HostLimiter:
    """At most `per_host` requests to a host at a time, and no further request after `failures` consecutive failures."""

    def __init__(self, per_host: int, failures: int) -> None:
        self._per_host, self._failures = per_host, failures
        self._hosts: dict[str, _HostState] = {}
        self._lock = threading.Lock()

    @contextmanager
    def slot(self, host: str, max_wait: float) -> Iterator[None]:
        """Hold one of the host's request slots while the block runs.

        Raises:
            FetchError: The host is down, or no slot becomes free within `max_wait` seconds.
        """
        with self._lock:
            state = self._hosts.get(host)
            if state is None:
                state = self._hosts[host] = _HostState(threading.Condition(self._lock))
            self._wait(state, time.monotonic() + max_wait)
            state.in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                state.in_flight -= 1
                state.changed.notify()

    def _wait(self, state: _HostState, end: float) -> None:
        while True:
            if state.failures >= self._failures:
                raise FetchError(
                    failures.HOST_DOWN, f"{state.failures} consecutive failures, the last one: {state.last_failure}"
                )
            now = time.monotonic()
            if state.in_flight < self._per_host and now >= state.paused_until:
                return
            if now >= end:
                raise FetchError(
                    failures.HOST_BUSY, "no request slot became free; `download.per_host` sets their number"
                )
            waits_for_pause = state.in_flight < self._per_host
            state.changed.wait((min(end, state.paused_until) if waits_for_pause else end) - now)

    def record_answer(self, host: str) -> None:
        """Record that the host has answered, with whatever status."""
        with self._lock:
            self._hosts[host].failures = 0

    def record_failure(self, host: str, error: FetchError, max_pause: float) -> None:
        """Record a failed request, and the pause that the host asks for if it is at most `max_pause` seconds."""
        with self._lock:
            state = self._hosts[host]
            if not failures.is_host_failure(error.reason):
                state.failures = 0
                return
            state.failures += 1
            state.last_failure = error.reason
            if error.retry_after is not None and error.retry_after <= max_pause:
                state.paused_until = max(state.paused_until, time.monotonic() + error.retry_after)
            if state.failures >= self._failures:
                state.changed.notify_all()
