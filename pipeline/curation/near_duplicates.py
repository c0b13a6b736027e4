"""Which of many images an earlier image is like: equal bytes, or perceptual hashes within a Hamming distance.

An image is left out where *any* earlier image is like it, kept or not. So what is decided of an image depends on
earlier ones only, and adding images to a dataset never changes what was decided before.

Rows are spilled to disk and looked at a bucket at a time, so memory does not grow with their number. For hashes the
64 bits are cut into d + 2 bands: hashes at a distance of at most d agree on at least two bands, so it is enough to
compare those that share a pair of bands. With d = 4 a pair is 21 bits: 100 million hashes, were they evenly spread,
would be compared with some 50 others each for each of the 15 pairs.
"""

import itertools
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lotlip_data.pipeline.core.external_buckets import ExternalBuckets

ROWS_A_BUCKET = 100_000
BUFFER_BYTES = 4 << 20
_BITS = 64
_LATEST = np.iinfo(np.uint64).max
_MIX = np.uint64(0x9E3779B97F4A7C15)
"""An odd number, so multiplying by it loses nothing; it spreads hashes, which are bunched, over the buckets."""

U64 = pa.uint64()
Found = tuple[np.ndarray, np.ndarray]
"""Positions of images to leave out, and for each that of the earliest image that is like it (uint64 both)."""


class Rows:
    """uint64 columns spilled to `folder`, `order` being the first of them; read a bucket at a time."""

    def __init__(self, folder: pathlib.Path, rows: int, *columns: str) -> None:
        folder.mkdir()
        self.rows = rows
        self.count = 1 + rows // ROWS_A_BUCKET
        self._schema = pa.schema([(name, U64) for name in ("order", *columns)])
        self._buckets = ExternalBuckets(folder, self.count, self._schema, BUFFER_BYTES)

    def add(self, *columns: np.ndarray) -> None:
        if len(columns[0]):
            arrays = [pa.array(column, U64) for column in columns]
            self._buckets.add(pa.Table.from_arrays(arrays, schema=self._schema))

    def flush(self) -> None:
        """Before the first bucket is read, and after the last row is added."""
        self._buckets.flush()

    def bucket(self, number: int) -> list[np.ndarray]:
        """The columns of one bucket. Two of the same `rows` have a row of the same `order` in the same bucket."""
        table = self._buckets.bucket(number)
        return [table[name].to_numpy() for name in self._schema.names]

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """The buckets that hold rows, in order."""
        self.flush()
        return (bucket for number in range(self.count) if len((bucket := self.bucket(number))[0]))


def exact_duplicates(rows: Rows) -> Iterator[Found]:
    """Rows of (first half, second half of a 128-bit digest, position): those whose digest an earlier one has."""
    for upper, lower, position in rows:
        order = np.lexsort((position, lower, upper))
        upper, lower, position = upper[order], lower[order], position[order]
        first = np.ones(len(order), dtype=bool)
        first[1:] = (upper[1:] != upper[:-1]) | (lower[1:] != lower[:-1])
        earliest = position[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
        yield position[~first], earliest[~first]


def mixed(hashes: np.ndarray) -> np.ndarray:
    """Hashes as an `order` that spreads them evenly (uint64 in and out, one to one)."""
    with np.errstate(over="ignore"):
        return hashes * _MIX


def near_duplicates(rows: Rows, distance: int, folder: pathlib.Path) -> Iterator[Found]:
    """Rows of (mixed hash, hash, position): those whose hash is within `distance` of an earlier one's.

    `folder` is for work under way. Images of equal hash are one here, so a million blank ones cost no more than one.
    """
    count = _spill_distinct(rows, folder / "distinct")
    better = Rows(folder / "better", rows.rows, "hash", "position")  # the earliest image near a hash; buckets as `rows`
    for number, bands in enumerate(itertools.combinations(_bands(distance), 2)):
        scratch = folder / f"bands-{number}"
        _compare(_distinct(folder / "distinct"), count, np.bitwise_or(*bands), distance, scratch, better)
        shutil.rmtree(scratch)
    better.flush()
    for number in range(rows.count):
        _, hashes, position = rows.bucket(number)
        _, candidates, candidate_position = better.bucket(number)
        found, of = np.unique(np.concatenate([hashes, candidates]), return_inverse=True)
        earliest = np.full(len(found), _LATEST)
        np.minimum.at(earliest, of, np.concatenate([position, candidate_position]))
        earliest = earliest[of[: len(hashes)]]
        late = earliest < position
        yield position[late], earliest[late]


def _bands(distance: int) -> list[np.uint64]:
    """Masks of `distance` + 2 bands that cover the 64 bits."""
    edges = np.linspace(0, _BITS, distance + 3).round().astype(int).tolist()
    return [np.uint64(((1 << stop) - 1) ^ ((1 << start) - 1)) for start, stop in itertools.pairwise(edges)]


def _spill_distinct(rows: Rows, path: pathlib.Path) -> int:
    """Write every hash once, as pairs with the first position that has it, into one file; how many there are."""
    count = 0
    with open(path, "wb") as file:
        for _, hashes, position in rows:
            order = np.lexsort((position, hashes))
            found, index = np.unique(hashes[order], return_index=True)
            np.stack([found, position[order][index]], axis=1).tofile(file)
            count += len(found)
    return count


def _distinct(path: pathlib.Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The hashes and their first positions, so many rows at a time. Read, not mapped: mapped pages count as memory."""
    with open(path, "rb") as file:
        while len(pairs := np.fromfile(file, np.uint64, 2 * ROWS_A_BUCKET)):
            yield pairs[0::2], pairs[1::2]


def _compare(
    distinct: Iterator[tuple[np.ndarray, np.ndarray]],
    count: int,
    mask: np.uint64,
    distance: int,
    folder: pathlib.Path,
    better: Rows,
) -> None:
    """Compare all hashes that agree on the bits of `mask`; to `better` go those that an earlier image is near to."""
    table = Rows(folder, count, "hash", "first")
    for hashes, first in distinct:
        table.add(mixed(hashes & mask), hashes, first)
    for key, hashes, first in table:
        order = np.argsort(key, kind="stable")
        key, hashes, first = key[order], hashes[order], first[order]
        nearest = first.copy()
        pairs = np.arange(len(key))
        for step in itertools.count(1):  # each with the one `step` after it, as long as they share the key
            pairs = pairs[pairs + step < len(key)]
            pairs = pairs[key[pairs] == key[pairs + step]]
            if not len(pairs):
                break
            left = pairs[np.bitwise_count(hashes[pairs] ^ hashes[pairs + step]) <= distance]
            right = left + step
            nearest[left] = np.minimum(nearest[left], first[right])
            nearest[right] = np.minimum(nearest[right], first[left])
        late = nearest < first
        better.add(mixed(hashes[late]), hashes[late], nearest[late])
