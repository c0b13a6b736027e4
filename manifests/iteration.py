"""Iteration in batches, and ahead of the consumer: in order, on threads, with bounded memory."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

READ_CONCURRENCY = 16
"""Threads that read small objects; they mostly wait for the storage."""
DECODE_THREADS = min(8, os.cpu_count() or 1)
"""Threads that decode images."""


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """`items` in lists of `size`. If `items` raises an error, the items before it come first, in a shorter list."""
    batch: list[Item] = []
    source = iter(items)
    while True:
        try:
            item = next(source)
        except StopIteration:
            break
        except (OSError, RuntimeError, ValueError, KeyError):
            if batch:
                yield batch
            raise
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def map_ordered(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int = READ_CONCURRENCY,
    window: int | None = None,
) -> Iterator[Result]:
    """`function(item)` of each item, in their order, computed on threads ahead of the consumer.

    An error of `function` is raised in place of its result, and no further item is started.

    Args:
        function: Called on several threads at once.
        items: Read on the consumer's thread, at most `window` items ahead of it.
        threads: The number of threads.
        window: The number of results that are ready or in progress, at most. Default: twice the number of threads.
    """
    window = window or 2 * threads
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, "map-ordered") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == window:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


async def prefetch(items: Iterator[Item]) -> AsyncGenerator[Item]:
    """`items`, read on a thread, one item ahead of the consumer, so that the event loop never waits for the storage."""
    loop = asyncio.get_running_loop()
    reader = ThreadPoolExecutor(1, "prefetch")

    def read() -> list[Item]:
        return [item for item in [next(items, None)] if item is not None]

    try:
        pending = loop.run_in_executor(reader, read)
        while batch := await pending:
            pending = loop.run_in_executor(reader, read)
            yield batch[0]
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


def evenly(items: list[Item], limit: int) -> list[Item]:
    """At most `limit` of the items, evenly spaced."""
    return items if len(items) <= limit else [items[index * len(items) // limit] for index in range(limit)]
