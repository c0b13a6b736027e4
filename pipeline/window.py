"""How many images are with the engine at a time."""

import asyncio


class Window:
    """At most `size` images at a time. Once it is full, it opens again for `burst` of them together.

    An image that is sent by itself wakes the threads of two processes, which takes longer than the sending; of images
    that are sent together, only the first does. One task at a time may wait: in Captioning, that which has the turn.
    """

    def __init__(self, size: int, burst: int) -> None:
        self.size = size
        self._burst = max(1, min(burst, size // 2))
        self._free = size
        self._awaited = 0
        self._enough = asyncio.Event()

    async def enter(self) -> None:
        """Takes a place, once there is one."""
        if not self._free:
            await self._until_free(self._burst)
        self._free -= 1

    def leave(self) -> None:
        self._free += 1
        if self._free >= self._awaited:
            self._enough.set()

    async def empty(self) -> None:
        """Until nothing is with the engine."""
        await self._until_free(self.size)

    async def _until_free(self, places: int) -> None:
        self._awaited = places
        self._enough.clear()
        if self._free < places:
            await self._enough.wait()
