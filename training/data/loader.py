"""Prefetches batches: while a step computes, the next batches are read, decoded and tokenized.

The batch of a step is a pure function of the step (see `dataset.Batches`). Batches that were prefetched when a process
was killed are simply computed again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from lotlip_data.manifests.iteration import map_ordered

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
    return map_ordered(make_batch, range(first, end), threads=PREFETCH_BATCHES, window=PREFETCH_BATCHES)
