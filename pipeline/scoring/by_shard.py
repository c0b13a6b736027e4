"""What the dataset-wide scorers share: hashes, and the numbers of a comparison gathered by shard, on disk."""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from lotlip_data.pipeline.core.spilled_rows import SpilledRows, spread

BUFFER_BYTES = 32 << 20
"""The memory for buffered rows is about three times as much. 4,096 buckets get 8 KiB per append."""
_SHARD_BITS = np.uint64(32)


def pack(shards: np.ndarray | int, values: np.ndarray) -> np.ndarray:
    """Shards and values below 2³² as one number each: uint64 [n]. Sorting them sorts by shard, then by value."""
    return (np.asarray(shards, np.uint64) << _SHARD_BITS) | values


def unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shards and the values that were packed: uint64 [n] each."""
    return packed >> _SHARD_BITS, packed & np.uint64((1 << 32) - 1)


def stable_hash(text: str) -> int:
    """64 bits of a hash of the text that is the same in every process."""
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def mix(values: np.ndarray) -> np.ndarray:
    """A one-to-one function that spreads all bits of uint64 values over all bits (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


class NumbersByShard:
    """Rows (shard, value, further numbers) on disk, read back one shard at a time."""

    def __init__(self, folder: Path, rows: int, *columns: str) -> None:
        """Args:
        folder: Where the rows are spilled; created here.
        rows: About how many rows there will be.
        columns: The names of the further numbers.
        """
        self._rows = SpilledRows(folder, rows, "packed", *columns, buffer_bytes=BUFFER_BYTES)

    def add(self, packed: np.ndarray, *numbers: np.ndarray) -> None:
        """Add rows: the packed shards and values, and one uint64 array for each further column."""
        self._rows.add(spread(packed >> _SHARD_BITS), packed, *numbers)

    def __iter__(self) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Each shard with its values and further numbers, in the order in which they were added. To be read once."""
        for _, packed, *numbers in self._rows.drain():
            shards, values = unpack(packed)
            order = np.argsort(shards, kind="stable")
            present, starts = np.unique(shards[order], return_index=True)
            for shard, part in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
                yield shard, [column[part] for column in (values, *numbers)]
