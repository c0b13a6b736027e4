"""The window of images that are with the engine."""

import asyncio

import pytest

from lotlip_data.pipeline.recaptioning.worker import RequestWindow


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def filled(size: int, burst: int) -> RequestWindow:
    window = RequestWindow(size, burst)
    for _ in range(size):
        await asyncio.wait_for(window.acquire(), 1)
    return window


def test_a_full_window_opens_for_a_burst_and_then_takes_images_until_it_is_full_again():
    async def run() -> None:
        window = await filled(10, 3)
        waiting = asyncio.create_task(window.acquire())
        await settled()
        for _ in range(2):
            window.release()
        await settled()
        assert not waiting.done()
        window.release()
        await asyncio.wait_for(waiting, 1)
        for _ in range(2):
            await asyncio.wait_for(window.acquire(), 1)
        again = asyncio.create_task(window.acquire())
        await settled()
        assert not again.done()
        again.cancel()

    asyncio.run(run())


def test_places_that_came_free_before_anyone_waited_count():
    async def run() -> None:
        window = await filled(10, 3)
        for _ in range(3):
            window.release()
        await asyncio.wait_for(window.acquire(), 1)

    asyncio.run(run())


def test_empty_waits_for_the_last_image_whatever_the_burst():
    async def run() -> None:
        window = RequestWindow(10, 3)
        await asyncio.wait_for(window.drained(), 1)
        for _ in range(4):
            await window.acquire()
        waiting = asyncio.create_task(window.drained())
        for _ in range(4):
            await settled()
            assert not waiting.done()
            window.release()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())


@pytest.mark.parametrize(("size", "burst"), [(1, 1), (1, 8), (2, 8), (3, 8), (16, 8)])
def test_no_more_than_half_of_a_window_is_kept_back(size, burst):
    """A user's own, smaller concurrency must not wait for more images than it has."""

    async def run() -> None:
        window = await filled(size, burst)
        waiting = asyncio.create_task(window.acquire())
        await settled()
        for _ in range(max(1, size // 2)):
            window.release()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())
