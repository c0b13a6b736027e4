"""What a step needs, made ahead of it: while one is computed, the next are read, decoded and tokenised.

A step's batch is a pure function of the step (see `data.Batches`), so what was made ahead and is lost with a killed
process is simply made again.
"""

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

AHEAD = 2
"""Batches ready or in the making: while the images of one are decoded, the texts of the next are tokenised."""


@dataclass(frozen=True)
class Batch:
    """This process's b samples of a step: `images` are features [b, D] of the locked tower, or pixels [b, 3, H, W];
    `ids` the token ids of the b raw texts, then of T long ones of each sample in turn."""

    images: Tensor
    ids: list[list[int]]


def prefetch_batches(make: Callable[[int], Batch], first: int, end: int) -> Iterator[Batch]:
    """The batches of the steps `first` … `end` - 1, in order. What goes wrong in the making is raised at its step."""
    with ThreadPoolExecutor(AHEAD, "loader") as maker:
        waiting: collections.deque[Future[Batch]] = collections.deque()
        following = iter(range(first, end))
        try:
            for step in following:
                waiting.append(maker.submit(make, step))
                if len(waiting) == AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
