"""An asynchronous function over single items from a function over a batch; the batches run on their own thread."""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from lotlip_data.captioners.base import BlankImageFailed, CaptionError, EngineDead

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Awaiting `batcher(item)` returns the result of `run([…, item, …])` for that item.

    A batch starts once it has `size` items, or `linger_seconds` after its first item. If a batch raises, its items run
    one by one, and only those that raise again fail, with CaptionError.

    A failure of the device must not be taken for one of the item. These end the engine, so that all waiting and later
    calls raise EngineDead: an AcceleratorError, after which every call of the process to its GPU fails; memory that is
    too small for one item; any error of an item if `blank` raises an error after it; and EngineDead itself.

    Args:
        run: Returns one result per item, in the order of the items.
        size: Largest number of items in a batch.
        blank: Returns an item that `run` can always process.
        linger_seconds: Time to wait for further items of a batch.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Result]],
        size: int,
        blank: Callable[[], Item],
        *,
        linger_seconds: float = 0.01,
    ):
        self._run, self._size, self._blank, self._linger_seconds = run, size, blank, linger_seconds
        self._queue: queue.SimpleQueue[tuple[Item, asyncio.Future[Result]] | None] = queue.SimpleQueue()
        self._dead: EngineDead | None = None
        self._lock = threading.Lock()  # no item may enter the queue after `_die` has emptied it
        self._thread = threading.Thread(target=self._run_batches, name="captioner-batches", daemon=True)
        self._thread.start()

    async def __call__(self, item: Item) -> Result:
        """Return the result for one item.

        Raises:
            CaptionError: `run` failed for this item alone.
            EngineDead: The batcher was closed, or `run` raised EngineDead.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._dead:
                raise self._dead
            self._queue.put((item, future))
        return await future

    def close(self) -> None:
        """End the thread after its current batch; calls that still wait raise EngineDead."""
        self._die(EngineDead("the engine was closed"))
        self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run_batches(self) -> None:
        while not self._dead:
            if batch := self._next_batch():
                try:
                    self._run_batch(batch)
                except EngineDead as error:
                    self._die(error)
                    for _, future in batch:
                        _settle(future, error=error)

    def _next_batch(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        """Wait for the next batch, without the items whose callers were cancelled."""
        first = self._queue.get()
        batch = [] if first is None else [first]
        deadline = time.monotonic() + self._linger_seconds
        while batch and len(batch) < self._size:
            try:
                entry = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if entry is None:
                break
            batch.append(entry)
        return [(item, future) for item, future in batch if not future.cancelled()]

    def _run_batch(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            results = self._run([item for item, _ in batch])
            if len(results) != len(batch):
                raise EngineDead(f"{len(results)} results for {len(batch)} images: they cannot be matched")
        except EngineDead:
            raise
        except torch.AcceleratorError as error:
            raise EngineDead(str(error)) from error
        except Exception as error:  # noqa: BLE001 - an image that breaks the model must not fail the rest of its batch
            if len(batch) > 1:
                for entry in batch:
                    self._run_batch([entry])
            else:
                _settle(batch[0][1], error=self._reason(error))
            return
        for (_, future), result in zip(batch, results, strict=True):
            _settle(future, result=result)

    def _reason(self, error: Exception) -> CaptionError:
        """The reason for which one item fails. Raises EngineDead if the error is not due to the item."""
        if isinstance(error, CaptionError):
            return error
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise EngineDead(f"not even one image fits in memory: {error}") from error
        reason = f"{type(error).__name__}: {error}"
        try:
            self._run([self._blank()])
        except torch.AcceleratorError as other:
            raise EngineDead(str(other)) from other
        except Exception as other:
            raise BlankImageFailed(
                f"{reason}; after that, a blank image fails too: {type(other).__name__}: {other}"
            ) from other
        return CaptionError(reason)

    def _die(self, error: EngineDead) -> None:
        with self._lock:
            self._dead = self._dead or error
        while not self._queue.empty():
            if entry := self._queue.get():
                _settle(entry[1], error=self._dead)


def _settle(future: "asyncio.Future[Result]", *, result: Result | None = None, error: Exception | None = None) -> None:
    """Complete a future of an event loop in another thread, unless its caller was cancelled."""

    def settle() -> None:
        if not future.done():
            if error:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

    with contextlib.suppress(RuntimeError):  # that loop is closed, so nobody waits
        future.get_loop().call_soon_threadsafe(settle)
