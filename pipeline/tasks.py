"""One Ray task an item, for as many items as there are: a bounded number under way, results as they come."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from lotlip_data.pipeline.cluster import cluster

ATTEMPTS = 3
"""How often an item is tried whose task dies; an error that the task raises is an answer, and final."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def run_tasks(task: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[tuple[Item, Answer | Exception]]:
    """`task(item)` on the cluster for every item; yields each with its answer, or with the error it ended in.

    Twice as many tasks as the cluster has CPUs are submitted at a time: enough to keep it busy and to let it grow.
    Retries are counted here, since Ray's own do not tell an item that kills its worker from bad luck. Ray is started
    only where there is an item.
    """
    left = iter(items)
    if (first := next(left, None)) is None:
        return
    with cluster():
        yield from _run(task, first, left)


def _run(
    task: Callable[[Item], Answer], first: Item, left: Iterator[Item]
) -> Iterator[tuple[Item, Answer | Exception]]:
    import ray

    remote: Any = ray.remote(num_cpus=1, max_retries=0)(task)
    running: dict[Any, tuple[Item, int]] = {remote.remote(first): (first, 1)}
    try:
        while running:
            bound = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while len(running) < bound and (item := next(left, None)) is not None:
                running[remote.remote(item)] = item, 1
            (ended,), _ = ray.wait(list(running), num_returns=1)
            item, attempt = running.pop(ended)
            try:
                yield item, ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                yield item, error.cause if isinstance(error.cause, Exception) else error
            except ray.exceptions.RayError as error:
                if attempt < ATTEMPTS:
                    running[remote.remote(item)] = item, attempt + 1
                else:
                    yield item, error
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def brief(error: Exception) -> str:
    """The last line of what a task ended in: Ray puts whole tracebacks before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
