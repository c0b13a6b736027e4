"""One item's failure affects no other, an engine's failure reaches all calls, and no call waits for ever."""

import asyncio
import threading

import pytest
import torch

from lotlip_data.captioners.base import CaptionError, EngineDead
from lotlip_data.captioners.engines.batcher import Batcher

BLANK = 1000


def blank():
    return BLANK


def gather(batcher, items):
    async def run():
        return await asyncio.wait_for(asyncio.gather(*map(batcher, items), return_exceptions=True), 20)

    return asyncio.run(run())


def gather_at_once(size, items, cancelled=()):
    """Run `items` that all arrive before their first batch starts; returns the batches and the results.

    Until they have arrived, the batcher is blocked in an earlier batch of one item. Each result is ten times its item.
    """
    batches, blocked, arrived = [], threading.Event(), threading.Event()

    def run(items):
        batches.append(items)
        blocked.set()
        arrived.wait(20)
        return [10 * item for item in items]

    batcher = Batcher(run, size, blank)

    async def main():
        first = asyncio.create_task(batcher(-1))
        await asyncio.to_thread(blocked.wait, 20)
        calls = [asyncio.create_task(batcher(item)) for item in items]
        await asyncio.sleep(0)  # now all are in the queue
        for index in cancelled:
            calls[index].cancel()
        arrived.set()
        return await asyncio.wait_for(asyncio.gather(first, *calls, return_exceptions=True), 20)

    _, *results = asyncio.run(main())
    batcher.close()
    return batches[1:], results


def test_results_match_their_items_and_batches_have_at_most_the_given_size():
    batches, results = gather_at_once(4, range(10))
    assert results == [10 * item for item in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_an_item_that_fails_fails_no_other():
    def run(items):
        if 3 in items:
            raise RuntimeError("poison")
        return items

    batcher = Batcher(run, 8, blank, linger_seconds=60.0)
    results = gather(batcher, range(8))
    batcher.close()
    assert [r for r in results if not isinstance(r, Exception)] == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(results[3], CaptionError) and str(results[3]) == "RuntimeError: poison"


def test_an_engines_failure_reaches_waiting_and_later_calls():
    def run(items):
        raise EngineDead("gone")

    batcher = Batcher(run, 2, blank)
    assert all(isinstance(result, EngineDead) for result in gather(batcher, range(6)))
    assert all(isinstance(result, EngineDead) for result in gather(batcher, range(2)))
    batcher.close()


@pytest.mark.parametrize("size", [1, 4])
def test_a_sick_gpu_ends_the_engine_and_rejects_no_image(size):
    """A batch, or a single image, hits the error; the images before it keep their results."""
    runs = []

    def run(items):
        runs.append(items)
        if 5 in items:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return items

    batcher = Batcher(run, size, blank, linger_seconds=60.0 if size > 1 else 0.01)
    results = gather(batcher, range(8))
    batcher.close()
    dead = [result for result in results if isinstance(result, EngineDead)]
    assert results[:4] == [0, 1, 2, 3] and dead and "illegal memory access" in str(dead[0])
    assert not any(isinstance(result, CaptionError) for result in results) and isinstance(results[5], EngineDead)
    assert runs.count(runs[-1]) == 1  # the GPU is not tried again


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED"),
        ValueError("probability tensor contains inf or nan"),
    ],
)
def test_an_error_that_a_blank_image_raises_too_is_not_the_images(error):
    def run(items):
        raise error

    batcher = Batcher(run, 2, blank)
    results = gather(batcher, range(5))
    assert all(isinstance(result, EngineDead) and str(error) in str(result) for result in results)
    batcher.close()


def test_a_batch_that_does_not_fit_in_memory_runs_one_by_one_and_an_image_that_does_not_ends_the_engine():
    limit = [1]

    def run(items):
        if len(items) > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return items

    batcher = Batcher(run, 4, blank, linger_seconds=60.0)
    assert gather(batcher, range(4)) == [0, 1, 2, 3]
    limit[0] = 0
    results = gather(batcher, range(4))
    assert all(isinstance(result, EngineDead) and "not even one image fits" in str(result) for result in results)
    batcher.close()


def test_close_releases_waiting_calls():
    started, go_on = threading.Event(), threading.Event()

    def run(items):
        started.set()
        go_on.wait(20)
        return items

    batcher = Batcher(run, 1, blank)

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


def test_a_cancelled_item_is_not_run():
    batches, results = gather_at_once(4, range(3), cancelled=[1])
    assert batches == [[0, 2]] and results[::2] == [0, 20] and isinstance(results[1], asyncio.CancelledError)


def test_a_wrong_number_of_results_ends_the_engine():
    batcher = Batcher(lambda items: items[:1], 2, blank, linger_seconds=60.0)
    assert all(isinstance(result, EngineDead) for result in gather(batcher, range(2)))
    batcher.close()
