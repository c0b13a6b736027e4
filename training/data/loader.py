"""Prefetches batches: while a step computes, the next batches are read, decoded and tokenized.

The batch of a step is a pure function of the step (see `dataset.Batches`). Batches that were prefetched when a process
was killed are simply computed again.
"""

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

PREFETCH_BATCHES = 2
"""Batches that are ready or in progress: while the images of one are decoded, the texts of the next are tokenized."""


@dataclass(frozen=True)
class Batch:
    """The b samples of this process in one step."""

    images: Tensor
    """float32: features [b, D] of the locked image tower, or pixels [b, 3, height, width]."""
    ids: list[list[int]]
    """Token ids of b + b·T texts: the raw texts, then the T long texts of each sample in turn."""


def prefetch_batches(make_batch: Callable[[int], Batch], first: int, end: int) -> Iterator[Batch]:
    """The batches of the steps `first` … `end - 1`, in order. An error of `make_batch` is raised at its own step."""
    with ThreadPoolExecutor(PREFETCH_BATCHES, "loader") as pool:
        pending: collections.deque[Future[Batch]] = collections.deque()
        try:
            for step in range(first, end):
                pending.append(pool.submit(make_batch, step))
                if len(pending) == PREFETCH_BATCHES:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
