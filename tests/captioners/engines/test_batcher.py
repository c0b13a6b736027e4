"""One item's failure is its own; an engine's death reaches everybody; nothing waits for ever."""

import asyncio
import threading

from lotlip_data.captioners.base import CaptionError, EngineDead
from lotlip_data.captioners.engines.batcher import Batcher


def gather(batcher, items):
    async def run():
        return await asyncio.wait_for(asyncio.gather(*map(batcher, items), return_exceptions=True), 20)

    return asyncio.run(run())


def gather_at_once(size, items, cancelled=()):
    """The batches that were run of items that had all arrived before the first batch, and ten times each item.

    The batcher is held in a batch before, of one item, until then.
    """
    batches, held, arrived = [], threading.Event(), threading.Event()

    def run(items):
        batches.append(items)
        held.set()
        arrived.wait(20)
        return [10 * item for item in items]

    batcher = Batcher(run, size)

    async def main():
        first = asyncio.create_task(batcher(-1))
        await asyncio.to_thread(held.wait, 20)
        calls = [asyncio.create_task(batcher(item)) for item in items]
        await asyncio.sleep(0)  # each is in the queue
        for index in cancelled:
            calls[index].cancel()
        arrived.set()
        return await asyncio.wait_for(asyncio.gather(first, *calls, return_exceptions=True), 20)

    _, *results = asyncio.run(main())
    batcher.close()
    return batches[1:], results


def test_results_go_to_their_items_in_batches_of_at_most_the_size():
    batches, results = gather_at_once(4, range(10))
    assert results == [10 * item for item in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_poison_item_costs_only_itself():
    def run(items):
        if 3 in items:
            raise RuntimeError("poison")
        return items

    batcher = Batcher(run, 8, linger=60.0)
    results = gather(batcher, range(8))
    batcher.close()
    assert [r for r in results if not isinstance(r, Exception)] == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(results[3], CaptionError) and str(results[3]) == "RuntimeError: poison"


def test_death_reaches_those_who_wait_and_those_who_come_later():
    def run(items):
        raise EngineDead("gone")

    batcher = Batcher(run, 2)
    assert all(isinstance(result, EngineDead) for result in gather(batcher, range(6)))
    assert all(isinstance(result, EngineDead) for result in gather(batcher, range(2)))
    batcher.close()


def test_close_releases_those_who_wait():
    started, go_on = threading.Event(), threading.Event()

    def run(items):
        started.set()
        go_on.wait(20)
        return items

    batcher = Batcher(run, 1)

    async def main():
        calls = [asyncio.ensure_future(batcher(item)) for item in range(3)]
        await asyncio.to_thread(started.wait, 20)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.wait(calls[1:], timeout=120)
        go_on.set()
        await closing
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = asyncio.run(main())
    assert first == 0
    assert all(isinstance(other, EngineDead) for other in others)


def test_a_cancelled_call_is_not_run():
    batches, results = gather_at_once(4, range(3), cancelled=[1])
    assert batches == [[0, 2]] and results[::2] == [0, 20] and isinstance(results[1], asyncio.CancelledError)


def test_results_of_another_number_than_items_end_the_engine():
    batcher = Batcher(lambda items: items[:1], 2, linger=60.0)
    assert all(isinstance(result, EngineDead) for result in gather(batcher, range(2)))
    batcher.close()
