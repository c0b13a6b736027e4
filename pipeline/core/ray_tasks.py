"""Ray tasks over many items, a bounded number at a time."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core.ray_cluster import cluster

ATTEMPTS = 3
"""Number of attempts per item if its task dies or raises. A UserError is final: another attempt cannot succeed."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_ray_tasks(
    task: Callable[[Item], Result], items: Iterable[Item], num_gpus: float = 0
) -> Iterator[tuple[Item, Result | Exception]]:
    """Run `task(item)` on the cluster for every item. Yields each item with its result or its last exception.

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
                if attempt < ATTEMPTS and not isinstance(cause, UserError):
                    running[remote.remote(item)] = item, attempt + 1
                    continue
                result = cause if isinstance(cause, Exception) else error
            yield item, result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
