"""Prefetches batches: while a step computes, the next batches are read, decoded, tokenized and packed.

The batch of a step is a pure function of the step (see `dataset.Batches`). Batches that were prefetched when a process
was killed are simply computed again.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from lotlip_data.manifests.iteration import map_ordered

Batch = TypeVar("Batch")

PREFETCH_BATCHES = 2
"""Batches that are ready or in progress: while the images of one are decoded, the texts of the next are tokenized."""


def prefetch_batches(make_batch: Callable[[int], Batch], first: int, end: int) -> Iterator[Batch]:
    """The batches of the steps `first` … `end - 1`, in order. An error of `make_batch` is raised at its own step."""
    return map_ordered(make_batch, range(first, end), threads=PREFETCH_BATCHES, window=PREFETCH_BATCHES)
