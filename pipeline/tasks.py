"""One Ray task an item, for as many items as there are: a bounded number under way, results as they come."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.cluster import cluster

ATTEMPTS = 3
"""How often an item is tried whose task dies or raises; a UserError is final, since only a person can mend it."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def run_tasks(
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


def brief(error: Exception) -> str:
    """One line of what a task ended in: a message for people as it is, the last line of anything else with its type."""
    if isinstance(error, UserError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
