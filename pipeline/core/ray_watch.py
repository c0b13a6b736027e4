"""Notices that a Ray cluster has died. Ray itself says so late, in other words, or by ending the process.

A thread watches. It interrupts the main thread as Ctrl-C does, and `cluster()` turns that into ClusterLost. A call of
Ray that waits for a dead cluster does not notice an interrupt, so after GRACE_SECONDS the thread ends the process.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

POLL_SECONDS = 2.0
HEAD_SECONDS = 45.0
"""Time without an answer of a cluster's head node after which it is lost: less than the 60 s after which Ray ends this
process, and enough for a head node that another one replaces."""
GRACE_SECONDS = 10.0

_CRITICAL = ("gcs_server", "raylet")
"""Processes of a node without which nothing works."""


class ClusterLost(ConnectionError):
    """The Ray cluster has died. What was committed is kept; the same call resumes."""


class ClusterWatch:
    """While `in_use`, calls `find_loss` every POLL_SECONDS, which returns what has died, or an empty string."""

    def __init__(self, find_loss: Callable[[], str]) -> None:
        self._find_loss = find_loss
        self._ended = threading.Event()
        self._users = 0
        self._lock = threading.Lock()
        self._interrupts = threading.current_thread() is threading.main_thread()
        self.loss = ""
        """What has died; empty while the cluster lives."""

    def __enter__(self) -> "ClusterWatch":
        threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Whoever enters this needs the cluster, and is interrupted when it dies."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1

    def check(self) -> None:
        """Raise ClusterLost if the cluster has died, without waiting for the next look."""
        self.loss = self.loss or self._find_loss()
        if self.loss:
            raise ClusterLost(self.loss)

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            if self._users and (loss := self._find_loss()):
                self.loss = loss
                if self._interrupts and (number := _interrupting_signal()):
                    signal.pthread_kill(threading.main_thread().ident or 0, number)
                if not self._ended.wait(GRACE_SECONDS):
                    print(f"error: {loss}. {RESUME}", file=sys.stderr, flush=True)
                    end_local_processes()
                    os._exit(1)
                return


def _interrupting_signal() -> signal.Signals | None:
    """A signal that raises an exception in the main thread: one with a handler. SIGINT is ignored in some shells."""
    return next((number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))), None)


RESUME = "Committed work is kept; run the same command again to resume."


def local_loss() -> str:
    """What has died of the Ray that this process has started."""
    import ray._private.worker as worker

    node: Any = worker._global_node
    dead = sorted({str(kind) for kind, _ in node.dead_processes()} & set(_CRITICAL)) if node else []
    return f"Ray has died on this machine: its process {dead[0]} was killed or ran out of memory" if dead else ""


class ClusterProbe:
    """Whether the head node of a cluster and the raylet of this machine answer, as `find_loss` of ClusterWatch.

    Args:
        head: Host and port of the cluster's control service.
        raylet: Those of the raylet that this process is connected to; None if there is none.
    """

    def __init__(self, head: tuple[str, int], raylet: tuple[str, int] | None = None) -> None:
        self._head, self._raylet = head, raylet
        self._last_answer = time.monotonic()

    def __call__(self) -> str:
        if self._raylet and isinstance(_connection_error(self._raylet), ConnectionRefusedError):
            return "Ray has died on this machine: its process raylet was killed or ran out of memory"
        error = _connection_error(self._head)
        if error is None:
            self._last_answer = time.monotonic()
        silent = time.monotonic() - self._last_answer
        if error and silent > HEAD_SECONDS:
            host, port = self._head
            return (
                f"the Ray cluster has died: its head node {host}:{port} has not answered for {silent:.0f} s ({error})"
            )
        return ""


def _connection_error(address: tuple[str, int]) -> OSError | None:
    try:
        with socket.create_connection(address, POLL_SECONDS):
            return None
    except OSError as error:
        return error


def end_local_processes() -> None:
    """End what is left of the Ray that this process has started, without asking Ray."""
    import ray._private.worker as worker

    node: Any = worker._global_node
    if node:
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=False)
