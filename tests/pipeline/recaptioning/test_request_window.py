"""The window of requests that are in flight."""

import asyncio

import pytest

from lotlip_data.pipeline.recaptioning.worker import RequestWindow


async def run_pending_tasks() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def make_full_window(size: int, burst: int) -> RequestWindow:
    window = RequestWindow(size, burst)
    for _ in range(size):
        await asyncio.wait_for(window.acquire(), 1)
    return window


def test_a_full_window_reopens_for_a_burst_and_then_accepts_images_until_it_is_full_again():
    async def run() -> None:
        window = await make_full_window(10, 3)
        waiting = asyncio.create_task(window.acquire())
        await run_pending_tasks()
        for _ in range(2):
            window.release()
        await run_pending_tasks()
        assert not waiting.done()
        window.release()
        await asyncio.wait_for(waiting, 1)
        for _ in range(2):
            await asyncio.wait_for(window.acquire(), 1)
        next_waiting = asyncio.create_task(window.acquire())
        await run_pending_tasks()
        assert not next_waiting.done()
        next_waiting.cancel()

    asyncio.run(run())


def test_slots_that_were_released_before_a_task_waits_count():
    async def run() -> None:
        window = await make_full_window(10, 3)
        for _ in range(3):
            window.release()
        await asyncio.wait_for(window.acquire(), 1)

    asyncio.run(run())


def test_drained_waits_for_the_last_image_whatever_the_burst():
    async def run() -> None:
        window = RequestWindow(10, 3)
        await asyncio.wait_for(window.drained(), 1)
        for _ in range(4):
            await window.acquire()
        waiting = asyncio.create_task(window.drained())
        for _ in range(4):
            await run_pending_tasks()
            assert not waiting.done()
            window.release()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())


@pytest.mark.parametrize(("size", "burst"), [(1, 1), (1, 8), (2, 8), (3, 8), (16, 8)])
def test_a_full_window_reopens_once_half_of_it_is_free(size, burst):
    """A concurrency below the engine's burst must not wait for more free slots than it has."""

    async def run() -> None:
        window = await make_full_window(size, burst)
        waiting = asyncio.create_task(window.acquire())
        await run_pending_tasks()
        for _ in range(max(1, size // 2)):
            window.release()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())
