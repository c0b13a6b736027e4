"""Iterators that read ahead: in batches, with several threads, or on a thread beside the event loop."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

READ_CONCURRENCY = 16
"""Number of small objects that are read at once. Reading them is mostly waiting."""
DECODE_THREADS = min(8, os.cpu_count() or 1)
"""Number of threads that decode images."""


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """`items` in lists of `size`; the last one may be shorter. An error is raised after the items read before it."""
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


def map_ordered(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function(item)` of each item, in order, READ_CONCURRENCY at once. At most two rounds of results are held."""
    with ThreadPoolExecutor(READ_CONCURRENCY) as pool:
        for batch in batched(items, 2 * READ_CONCURRENCY):
            yield from pool.map(function, batch)


def read_images_ahead(
    items: Iterable[Item], function: Callable[[Item], Result], threads: int = DECODE_THREADS
) -> Iterator[Result]:
    """`map(function, items)` in order, computed by threads that are at most two rounds ahead of the consumer."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


async def prefetch(items: Iterator[Item]) -> AsyncGenerator[Item]:
    """`items`, read on a thread of their own, one ahead of the consumer. None marks the end."""
    loop = asyncio.get_running_loop()
    reader = ThreadPoolExecutor(1, "read")

    def read() -> list[Item]:
        return [item for item in [next(items, None)] if item is not None]

    try:
        upcoming = loop.run_in_executor(reader, read)
        while batch := await upcoming:
            upcoming = loop.run_in_executor(reader, read)
            yield batch[0]
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


def evenly(items: list[Item], limit: int) -> list[Item]:
    """At most `limit` of the items, evenly spaced."""
    return items if len(items) <= limit else [items[index * len(items) // limit] for index in range(limit)]
