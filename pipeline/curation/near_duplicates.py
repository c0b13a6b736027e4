"""Finds images that duplicate an earlier image: equal bytes, or perceptual hashes within a Hamming distance.

An image is left out if *any* earlier image is near it, kept or not. So the decision on an image depends on earlier ones
only, and adding images to a dataset never changes an earlier decision.

Rows are spilled to disk and read one bucket at a time, so memory does not grow with their number. The 64 bits of a hash
are cut into d + 2 bands. Two hashes at a distance of at most d agree on at least two bands, so it is enough to compare
the hashes that share a pair of bands. With d = 4 a pair has 21 bits: of 100 million evenly distributed hashes, each is
compared with about 50 others for each of the 15 pairs.
"""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from lotlip_data.pipeline.core.external_buckets import ExternalBuckets

ROWS_PER_BUCKET = 100_000
BUFFER_BYTES = 4 << 20
_BITS = 64
_LATEST = np.iinfo(np.uint64).max
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""An odd number, so multiplication by it is one to one; it spreads clustered hashes over the buckets."""

U64 = pa.uint64()
Duplicates = tuple[np.ndarray, np.ndarray]
"""uint64 [n] both: positions of images to leave out, and for each the position of the earliest image near it."""


class SpilledRows:
    """Rows of uint64 columns on disk, read bucket by bucket; the first column decides the bucket."""

    def __init__(self, folder: Path, rows: int, *columns: str) -> None:
        """Args:
        folder: Where the rows are spilled; created here.
        rows: The number of rows that are expected; it decides the number of buckets.
        columns: The names of the columns after the first, which is called `order`.
        """
        folder.mkdir()
        self.rows = rows
        self.count = 1 + rows // ROWS_PER_BUCKET
        """The number of buckets."""
        self._schema = pa.schema([(name, U64) for name in ("order", *columns)])
        self._buckets = ExternalBuckets(folder, self.count, self._schema, BUFFER_BYTES)

    def add(self, *columns: np.ndarray) -> None:
        """Add rows: one uint64 array per column, all of the same length."""
        if len(columns[0]):
            arrays = [pa.array(column, U64) for column in columns]
            self._buckets.add(pa.Table.from_arrays(arrays, schema=self._schema))

    def flush(self) -> None:
        """Write buffered rows to disk. To be called after the last row is added and before a bucket is read."""
        self._buckets.flush()

    def bucket(self, number: int) -> list[np.ndarray]:
        """The columns of a bucket. Objects with the same `rows` have rows of the same `order` in the same bucket."""
        table = self._buckets.bucket(number)
        return [table[name].to_numpy() for name in self._schema.names]

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """The buckets with rows, in order."""
        self.flush()
        return (bucket for number in range(self.count) if len((bucket := self.bucket(number))[0]))


def exact_duplicates(rows: SpilledRows) -> Iterator[Duplicates]:
    """Find the images whose bytes an earlier image has.

    Args:
        rows: Columns (first half of a 128-bit digest, second half, position).
    """
    for upper, lower, position in rows:
        order = np.lexsort((position, lower, upper))
        upper, lower, position = upper[order], lower[order], position[order]
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = (upper[1:] != upper[:-1]) | (lower[1:] != lower[:-1])
        earliest = position[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
        yield position[~is_first], earliest[~is_first]


def spread(hashes: np.ndarray) -> np.ndarray:
    """Hashes as evenly distributed values for the first column of SpilledRows; one to one, uint64 in and out."""
    with np.errstate(over="ignore"):
        return hashes * _MULTIPLIER


def near_duplicates(rows: SpilledRows, distance: int, folder: Path) -> Iterator[Duplicates]:
    """Find the images whose hash is near the hash of an earlier image.

    Images of equal hash are compared as one, so a million blank images cost no more than one.

    Args:
        rows: Columns (spread hash, hash, position).
        distance: The largest number of bits that may differ.
        folder: An empty scratch folder.
    """
    count = _spill_distinct(rows, folder / "distinct")
    candidates = SpilledRows(folder / "better", rows.rows, "hash", "position")  # the same buckets as `rows`
    for number, bands in enumerate(itertools.combinations(_bands(distance), 2)):
        scratch = folder / f"bands-{number}"
        _compare(_read_distinct(folder / "distinct"), count, np.bitwise_or(*bands), distance, scratch, candidates)
        shutil.rmtree(scratch)
    candidates.flush()
    for number in range(rows.count):
        _, hashes, position = rows.bucket(number)
        _, candidate_hashes, candidate_position = candidates.bucket(number)
        distinct, index = np.unique(np.concatenate([hashes, candidate_hashes]), return_inverse=True)
        earliest = np.full(len(distinct), _LATEST)
        np.minimum.at(earliest, index, np.concatenate([position, candidate_position]))
        earliest = earliest[index[: len(hashes)]]
        is_late = earliest < position
        yield position[is_late], earliest[is_late]


def _bands(distance: int) -> list[np.uint64]:
    """Masks of `distance` + 2 bands that cover the 64 bits."""
    edges = np.linspace(0, _BITS, distance + 3).round().astype(int).tolist()
    return [np.uint64(((1 << stop) - 1) ^ ((1 << start) - 1)) for start, stop in itertools.pairwise(edges)]


def _spill_distinct(rows: SpilledRows, path: Path) -> int:
    """Write every hash once, with the first position that has it, to one file. Returns the number of hashes."""
    count = 0
    with open(path, "wb") as file:
        for _, hashes, position in rows:
            order = np.lexsort((position, hashes))
            distinct, index = np.unique(hashes[order], return_index=True)
            np.stack([distinct, position[order][index]], axis=1).tofile(file)
            count += len(distinct)
    return count


def _read_distinct(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The hashes and their first positions, in blocks. Read and not mapped, because mapped pages count as memory."""
    with open(path, "rb") as file:
        while len(pairs := np.fromfile(file, np.uint64, 2 * ROWS_PER_BUCKET)):
            yield pairs[0::2], pairs[1::2]


def _compare(
    distinct: Iterator[tuple[np.ndarray, np.ndarray]],
    count: int,
    mask: np.uint64,
    distance: int,
    folder: Path,
    candidates: SpilledRows,
) -> None:
    """Compare all hashes that agree on the bits of `mask`.

    Args:
        distinct: Blocks of hashes and their first positions.
        count: The number of hashes.
        mask: The bits of two bands.
        distance: The largest number of bits that may differ.
        folder: A scratch folder, created here.
        candidates: Receives the hashes with an earlier image near them, and the position of that image.
    """
    table = SpilledRows(folder, count, "hash", "first")
    for hashes, first in distinct:
        table.add(spread(hashes & mask), hashes, first)
    for key, hashes, first in table:
        order = np.argsort(key, kind="stable")
        key, hashes, first = key[order], hashes[order], first[order]
        nearest = first.copy()
        pairs = np.arange(len(key))
        for step in itertools.count(1):  # each hash with the one `step` after it, while they share the key
            pairs = pairs[pairs + step < len(key)]
            pairs = pairs[key[pairs] == key[pairs + step]]
            if not len(pairs):
                break
            left = pairs[np.bitwise_count(hashes[pairs] ^ hashes[pairs + step]) <= distance]
            right = left + step
            nearest[left] = np.minimum(nearest[left], first[right])
            nearest[right] = np.minimum(nearest[right], first[left])
        is_late = nearest < first
        candidates.add(spread(hashes[is_late]), hashes[is_late], nearest[is_late])
