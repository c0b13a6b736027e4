"""Ray tasks over many items, a bounded number at a time, and the Ray cluster that a stage runs on.

The cluster is the one that the environment names, or one that is started on this machine.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.storage_retry import DiskError

ATTEMPTS = 3
"""Number of attempts per item if its task dies or raises. A UserError is final: another attempt cannot succeed."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_ray_tasks(
    task: Callable[[Item], Result], items: Iterable[Item], num_gpus: float = 0
) -> Iterator[tuple[Item, Result | Exception]]:
    """Run `task(item)` on the cluster for every item. Yields each item with its result or its last exception.

    A DiskError is raised at once, and the other tasks are cancelled: each of them would end with it too.

    Twice as many tasks as the cluster can run are submitted at a time: enough to keep it busy and to let it grow.
    Retries are counted here, since Ray's own retries do not separate an item that kills its worker from a lost node.
    Ray is started only if there is an item.

    Args:
        task: Called in a worker process.
        items: The items, which are read as tasks are submitted.
        num_gpus: GPUs that Ray reserves per task. Each task has one CPU.
    """
    left = iter(items)
    if (first := next(left, None)) is None:
        return
    with cluster():
        yield from _run(task, first, left, num_gpus)


def _run(
    task: Callable[[Item], Result], first: Item, left: Iterator[Item], num_gpus: float
) -> Iterator[tuple[Item, Result | Exception]]:
    import ray

    def call(item: Item) -> Result:  # Ray takes functions, and `task` may be any callable
        return task(item)

    remote: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=0)(call)
    running: dict[Any, tuple[Item, int]] = {remote.remote(first): (first, 1)}
    try:
        while running:
            resources = ray.cluster_resources()
            slots = min(resources.get("CPU", 1), resources.get("GPU", 0) / num_gpus if num_gpus else math.inf)
            limit = 2 * max(1, int(slots))
            while len(running) < limit and (item := next(left, None)) is not None:
                running[remote.remote(item)] = item, 1
            (ended,), _ = ray.wait(list(running), num_returns=1)
            item, attempt = running.pop(ended)
            try:
                result = ray.get(ended)
            except ray.exceptions.RayError as error:
                cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                if isinstance(cause, DiskError):
                    raise cause from None
                if attempt < ATTEMPTS and not isinstance(cause, UserError):
                    running[remote.remote(item)] = item, attempt + 1
                    continue
                result = cause if isinstance(cause, Exception) else error
            yield item, result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


LOCAL_OBJECT_STORE_BYTES = 256 << 20  # only small results pass through it, never an image

STARTS = 3
"""Number of attempts to start Ray on this machine. Ray gives up an attempt after half a minute."""


_session: ContextVar[ExitStack | None] = ContextVar("session", default=None)
"""Ends the connection to Ray of the current `ray_session`."""


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to Ray at most once while this is entered: the first `cluster` connects, and the end disconnects.

    A start of Ray and of its workers takes seconds. A session inside another one is part of it.
    """
    if _session.get() is not None:
        yield
        return
    with ExitStack() as session:
        token = _session.set(session)
        try:
            yield
        finally:
            _session.reset(token)


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to Ray while this is entered, or to the end of the `ray_session` around it.

    Inside `ray job submit`, or if RAY_ADDRESS is set, the cluster is the one named there. Otherwise Ray is started on
    this machine, and stopped at the end. An existing connection is used and left open.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        start_local(object_store_memory=LOCAL_OBJECT_STORE_BYTES)
    if session := _session.get():
        session.callback(ray.shutdown)
        yield
        return
    try:
        yield
    finally:
        ray.shutdown()


def start_local(**options: Any) -> None:
    """Start Ray on this machine, with `options` of `ray.init`. Raises UserError if it does not start in time."""
    import ray

    for _ in range(STARTS):
        try:
            ray.init(
                address="local",  # otherwise ray.init connects to a cluster that another user runs on this machine
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
        except Exception as error:  # Ray has no exception type for a timeout at start
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
        else:
            return
    raise UserError(
        f"Ray did not start on this machine in {STARTS} attempts: the machine is too busy, or short of memory. "
        "/tmp/ray/session_latest/logs has the reason. Set RAY_ADDRESS to use a cluster instead."
    )
