"""Turns a function over a batch into an asynchronous one over single items: micro-batches on a thread of its own."""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from lotlip_data.captioners.base import CaptionError, EngineDead

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Awaiting `batcher(item)` gives `run([…, item, …])`'s result for it.

    A batch is what has arrived, up to `size`, once one item is there and `linger` seconds have passed or it is full.
    If a batch raises, its items run one by one, and only those that raise again fail, with CaptionError. A `run` that
    raises EngineDead ends the batcher: everything waiting and every later call gets EngineDead too.
    """

    def __init__(self, run: Callable[[list[Item]], list[Result]], size: int, *, linger: float = 0.01):
        self._run, self._size, self._linger = run, size, linger
        self._waiting: queue.SimpleQueue[tuple[Item, asyncio.Future[Result]] | None] = queue.SimpleQueue()
        self._dead: EngineDead | None = None
        self._lock = threading.Lock()  # nothing may enter the queue after it was emptied for the last time
        self._thread = threading.Thread(target=self._work, name="captioner-batches", daemon=True)
        self._thread.start()

    async def __call__(self, item: Item) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._dead:
                raise self._dead
            self._waiting.put((item, future))
        return await future

    def close(self) -> None:
        """Ends the thread after the batch in hand; whoever still waits gets EngineDead."""
        self._die(EngineDead("the engine was closed"))
        self._waiting.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while not self._dead:
            if batch := self._collect():
                try:
                    self._give(batch)
                except EngineDead as error:
                    self._die(error)
                    for _, future in batch:
                        _settle(future, error=error)

    def _collect(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        first = self._waiting.get()
        batch = [] if first is None else [first]
        until = time.monotonic() + self._linger
        while batch and len(batch) < self._size:
            try:
                entry = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if entry is None:
                break
            batch.append(entry)
        return [(item, future) for item, future in batch if not future.cancelled()]

    def _give(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            results = self._run([item for item, _ in batch])
            if len(results) != len(batch):
                raise EngineDead(f"{len(results)} results for {len(batch)} images: which is whose cannot be told")
        except EngineDead:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one image does to a model must not cost its neighbours
            if len(batch) > 1:
                for entry in batch:
                    self._give([entry])
            else:
                reason = error if isinstance(error, CaptionError) else CaptionError(f"{type(error).__name__}: {error}")
                _settle(batch[0][1], error=reason)
            return
        for (_, future), result in zip(batch, results, strict=True):
            _settle(future, result=result)

    def _die(self, error: EngineDead) -> None:
        with self._lock:
            self._dead = self._dead or error
        while not self._waiting.empty():
            if entry := self._waiting.get():
                _settle(entry[1], error=self._dead)


def _settle(future: "asyncio.Future[Result]", *, result: Result | None = None, error: Exception | None = None) -> None:
    """Completes a future of another thread's loop, unless its caller has gone."""

    def settle() -> None:
        if not future.done():
            if error:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

    with contextlib.suppress(RuntimeError):  # that loop is closed, so nobody waits
        future.get_loop().call_soon_threadsafe(settle)
