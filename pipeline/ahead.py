"""Reading ahead: an iterator's items in lists, several at a time, or on a thread while the event loop works."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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


def in_order(read: Callable[[T], Read], items: Iterable[T]) -> Iterator[Read]:
    """`read(item)` of each item, in their order, READERS at a time. No more than a few wait for their use."""
    with ThreadPoolExecutor(READERS) as pool:
        for some in batched(items, 2 * READERS):
            yield from pool.map(read, some)


async def read_ahead(items: Iterator[T]) -> AsyncGenerator[T]:
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
