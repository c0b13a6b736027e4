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
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lotlip_data.pipeline.spill import Buckets

ROWS_A_BUCKET = 1_000_000
BUFFER_BYTES = 64 << 20
_BITS = 64
_MIX = np.uint64(0x9E3779B97F4A7C15)
"""An odd number, so multiplying by it loses nothing; it spreads hashes, which are bunched, over the buckets."""

U64 = pa.uint64()
Found = tuple[np.ndarray, np.ndarray]
"""Positions of images to leave out, and for each that of the earliest image that is like it (uint64 both)."""


class Rows:
    """uint64 columns spilled to `folder`, `order` being the first of them; read a bucket at a time."""

    def __init__(self, folder: pathlib.Path, rows: int, *columns: str) -> None:
        folder.mkdir()
        self._schema = pa.schema([(name, U64) for name in ("order", *columns)])
        self._buckets = Buckets(folder, 1 + rows // ROWS_A_BUCKET, self._schema, BUFFER_BYTES)

    def add(self, *columns: np.ndarray) -> None:
        if len(columns[0]):
            arrays = [pa.array(column, U64) for column in columns]
            self._buckets.add(pa.Table.from_arrays(arrays, schema=self._schema))

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        self._buckets.flush()
        for table in self._buckets:
            yield [table[name].to_numpy() for name in self._schema.names]


def equal(rows: Rows) -> Iterator[Found]:
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


def near(rows: Rows, distance: int, folder: pathlib.Path) -> Iterator[Found]:
    """Rows of (mixed hash, hash, position): those whose hash is within `distance` of an earlier one's.

    `folder` is for work under way. Images of equal hash are one here, so a million blank ones cost no more than one.
    """
    distinct = _Distinct(rows, folder)
    for number, bands in enumerate(itertools.combinations(_bands(distance), 2)):
        _compare(distinct, np.bitwise_or(*bands), distance, folder / f"bands-{number}")
    start = 0
    for _, hashes, position in rows:
        _, of = np.unique(hashes, return_inverse=True)
        earliest = distinct.nearest[start + of]
        start += int(of.max()) + 1
        late = earliest < position
        yield position[late], np.asarray(earliest[late])


def _bands(distance: int) -> list[np.uint64]:
    """Masks of `distance` + 2 bands that cover the 64 bits."""
    edges = np.linspace(0, _BITS, distance + 3).round().astype(int).tolist()
    return [np.uint64(((1 << stop) - 1) ^ ((1 << start) - 1)) for start, stop in itertools.pairwise(edges)]


class _Distinct:
    """Every hash once, on disk: `hashes`, the `first` position that has it, and the `nearest` found so far."""

    def __init__(self, rows: Rows, folder: pathlib.Path) -> None:
        names = ("hashes", "first")
        with open(folder / names[0], "wb") as hashes, open(folder / names[1], "wb") as first:
            for _, values, position in rows:
                order = np.lexsort((position, values))
                found, index = np.unique(values[order], return_index=True)
                found.tofile(hashes)
                position[order][index].tofile(first)
        self.hashes, self.first = (_mapped(folder / name) for name in names)
        self.nearest = np.lib.format.open_memmap(folder / "nearest.npy", "w+", np.uint64, (max(1, len(self.first)),))
        for part in self.parts():
            self.nearest[part] = self.first[part]

    def parts(self) -> Iterator[slice]:
        return (slice(at, at + ROWS_A_BUCKET) for at in range(0, len(self.first), ROWS_A_BUCKET))


def _mapped(path: pathlib.Path) -> np.ndarray:
    size = path.stat().st_size // 8
    return np.memmap(path, np.uint64, "r", shape=(size,)) if size else np.empty(0, np.uint64)


def _compare(distinct: _Distinct, mask: np.uint64, distance: int, folder: pathlib.Path) -> None:
    """Compare all hashes that agree on the bits of `mask`, and note the earliest image that each is near to."""
    table = Rows(folder, len(distinct.first), "index")
    for part in distinct.parts():
        table.add(mixed(distinct.hashes[part] & mask), np.arange(len(distinct.first), dtype=np.uint64)[part])
    for key, index in table:
        order = np.argsort(key, kind="stable")
        key, index = key[order], index[order]
        hashes, first, nearest = distinct.hashes[index], distinct.first[index], distinct.nearest[index]
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
        distinct.nearest[index] = nearest
