"""Reading ahead: an iterator's items in lists, several at a time, or on a thread while the event loop works."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
Read = TypeVar("Read")

READERS = 16
"""Small objects that are read at a time: it is waiting that takes the time."""


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`. An error comes after the items that were read before it."""
    batch: list[T] = []
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


def map_ordered(read: Callable[[T], Read], items: Iterable[T]) -> Iterator[Read]:
    """`read(item)` of each item, in their order, READERS at a time. No more than a few wait for their use."""
    with ThreadPoolExecutor(READERS) as pool:
        for some in batched(items, 2 * READERS):
            yield from pool.map(read, some)


async def prefetch(items: Iterator[T]) -> AsyncGenerator[T]:
    """`items`, read on a thread of their own, one ahead of their use."""
    loop = asyncio.get_running_loop()
    reader = ThreadPoolExecutor(1, "read")

    def read() -> list[T]:
        return [item for item in [next(items, None)] if item is not None]

    try:
        coming = loop.run_in_executor(reader, read)
        while found := await coming:
            coming = loop.run_in_executor(reader, read)
            yield found[0]
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


Item = TypeVar("Item")


def evenly(items: list[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly chosen."""
    return items if len(items) <= most else [items[index * len(items) // most] for index in range(most)]


READ_THREADS = min(8, os.cpu_count() or 1)


def read_images_ahead(items: Iterable[Any], make: Callable[[Any], Any], threads: int = READ_THREADS) -> Iterator[Any]:
    """`map(make, items)` in order, by threads that are at most two rounds ahead of what is taken."""
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[Any]] = deque()
        for item in items:
            under_way.append(pool.submit(make, item))
            if len(under_way) > 2 * threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
