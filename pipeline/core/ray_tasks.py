"""One Ray task an item, for as many items as there are: a bounded number under way, results as they come.

The Ray cluster that a stage runs on: the one that the environment names, or one on this machine.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lotlip_data.manifests.errors import UserError

ATTEMPTS = 3
"""How often an item is tried whose task dies or raises; a UserError is final, since only a person can mend it."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def run_ray_tasks(
    task: Callable[[Item], Answer], items: Iterable[Item], num_gpus: float = 0
) -> Iterator[tuple[Item, Answer | Exception]]:
    """`task(item)` on the cluster for every item; yields each with its answer, or with the error it ended in.

    Twice as many tasks as the cluster can run are submitted at a time: enough to keep it busy and to let it grow.
    Retries are counted here, since Ray's own do not tell an item that kills its worker from bad luck. Ray is started
    only where there is an item.
    """
    left = iter(items)
    if (first := next(left, None)) is None:
        return
    with cluster():
        yield from _run(task, first, left, num_gpus)


def _run(
    task: Callable[[Item], Answer], first: Item, left: Iterator[Item], num_gpus: float
) -> Iterator[tuple[Item, Answer | Exception]]:
    import ray

    def call(item: Item) -> Answer:  # Ray takes functions, and `task` may be any callable
        return task(item)

    remote: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=0)(call)
    running: dict[Any, tuple[Item, int]] = {remote.remote(first): (first, 1)}
    try:
        while running:
            there = ray.cluster_resources()
            places = min(there.get("CPU", 1), there.get("GPU", 0) / num_gpus if num_gpus else math.inf)
            bound = 2 * max(1, int(places))
            while len(running) < bound and (item := next(left, None)) is not None:
                running[remote.remote(item)] = item, 1
            (ended,), _ = ray.wait(list(running), num_returns=1)
            item, attempt = running.pop(ended)
            try:
                answer = ray.get(ended)
            except ray.exceptions.RayError as error:
                cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                if attempt < ATTEMPTS and not isinstance(cause, UserError):
                    running[remote.remote(item)] = item, attempt + 1
                    continue
                answer = cause if isinstance(cause, Exception) else error
            yield item, answer
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


LOCAL_OBJECT_STORE_BYTES = 256 << 20  # only small results pass through it, never an image

STARTS = 3
"""How often Ray is started on this machine where it is not up within the half minute that it gives itself."""


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to Ray for the length of a stage.

    Inside `ray job submit`, or where RAY_ADDRESS is set, that is the cluster named there; otherwise Ray is started
    on this machine and stopped at the end. A connection that exists already is used and left open.
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
    try:
        yield
    finally:
        ray.shutdown()


def start_local(**options: Any) -> None:
    """Start Ray on this machine. Raises UserError where it does not come up, as on one that is far too busy."""
    import ray

    for _ in range(STARTS):
        try:
            ray.init(
                address="local",  # else a Ray that somebody else runs on this machine is taken
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
        except Exception as error:  # Ray has no type of its own for it
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
        else:
            return
    raise UserError(
        f"Ray did not come up on this machine, {STARTS} times over: it is too busy, or short of memory. "
        "/tmp/ray/session_latest/logs has why; set RAY_ADDRESS to use a cluster instead."
    )
