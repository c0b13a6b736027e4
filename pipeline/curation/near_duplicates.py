"""Finds images that duplicate another image: equal bytes, or perceptual hashes within a Hamming distance.

Of images with equal bytes the earliest stays. Images that look alike are ordered by precedence, then by position, and
an image is left out if *any* image before it in this order is near it, kept or not. So the decision on an image depends
on the images before it only: the order of reading does not matter, and a new image changes a decision only if it goes
before the other image.

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

from lotlip_data.pipeline.core import spilled_rows
from lotlip_data.pipeline.core.spilled_rows import SpilledRows, spread

_BITS = 64

Duplicates = tuple[np.ndarray, np.ndarray, np.ndarray]
"""uint64 [n] each: positions of images to leave out, for each the position of the first image near it, and the Hamming
distance between the two."""


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
        yield position[~is_first], earliest[~is_first], np.zeros(np.count_nonzero(~is_first), np.uint64)


def near_duplicates(rows: SpilledRows, distance: int, folder: Path) -> Iterator[Duplicates]:
    """Find the images whose hash is near the hash of an image before them, by precedence and then by position.

    Images of equal hash are compared as one, so a million blank images cost no more than one.

    Args:
        rows: Columns (spread hash, hash, precedence, position). Of two images, the one of the lower precedence stays.
        distance: The largest number of bits that may differ.
        folder: An empty scratch folder.
    """
    count = _spill_distinct(rows, folder / "distinct")
    columns = ("hash", "precedence", "position", "other_hash")
    candidates = SpilledRows(folder / "better", rows.rows, *columns)  # the same buckets as `rows`
    for number, pair in enumerate(itertools.combinations(bands(distance), 2)):
        scratch = folder / f"bands-{number}"
        _compare(_read_distinct(folder / "distinct"), count, np.bitwise_or(*pair), distance, scratch, candidates)
        shutil.rmtree(scratch)
    candidates.flush()
    for number in range(rows.count):
        _, hashes, precedence, position = rows.bucket(number)
        yield _merge(hashes, precedence, position, candidates.bucket(number)[1:])


def _merge(
    hashes: np.ndarray, precedence: np.ndarray, position: np.ndarray, candidates: list[np.ndarray]
) -> Duplicates:
    """Return the duplicates of one bucket.

    Args:
        hashes: The hashes of the images.
        precedence: Their precedence.
        position: Their positions.
        candidates: Columns (hash, precedence, position, other hash): images near one of these hashes.
    """
    own = (hashes, precedence, position, hashes)
    all_hashes, all_precedence, all_position, other_hashes = map(np.concatenate, zip(own, candidates, strict=True))
    order = np.lexsort((all_position, all_precedence, all_hashes))
    _, start, index = np.unique(all_hashes[order], return_index=True, return_inverse=True)
    first = np.empty(len(order), np.int64)
    first[order] = order[start[index]]
    first = first[: len(hashes)]
    is_late = all_position[first] != position
    first = first[is_late]
    return (
        position[is_late],
        all_position[first],
        np.bitwise_count(hashes[is_late] ^ other_hashes[first]).astype(np.uint64),
    )


def bands(distance: int) -> list[np.uint64]:
    """Masks of `distance` + 2 bands that cover the 64 bits."""
    edges = np.linspace(0, _BITS, distance + 3).round().astype(int).tolist()
    return [np.uint64(((1 << stop) - 1) ^ ((1 << start) - 1)) for start, stop in itertools.pairwise(edges)]


def _spill_distinct(rows: SpilledRows, path: Path) -> int:
    """Write every hash once, with the first image that has it, to one file. Returns the number of hashes."""
    count = 0
    with open(path, "wb") as file:
        for _, hashes, precedence, position in rows:
            order = np.lexsort((position, precedence, hashes))
            distinct, index = np.unique(hashes[order], return_index=True)
            first = order[index]
            np.stack([distinct, precedence[first], position[first]], axis=1).tofile(file)
            count += len(distinct)
    return count


def _read_distinct(path: Path) -> Iterator[list[np.ndarray]]:
    """Hashes with precedence and position of their first images, in blocks.

    They are read and not mapped, because mapped pages count as memory.
    """
    with open(path, "rb") as file:
        while len(block := np.fromfile(file, np.uint64, 3 * spilled_rows.ROWS_PER_BUCKET)):
            yield [block[column::3] for column in range(3)]


def _compare(
    distinct: Iterator[list[np.ndarray]],
    count: int,
    mask: np.uint64,
    distance: int,
    folder: Path,
    candidates: SpilledRows,
) -> None:
    """Compare all hashes that agree on the bits of `mask`.

    Args:
        distinct: Blocks of columns (hash, precedence, position): each hash with its first image.
        count: The number of hashes.
        mask: The bits of two bands.
        distance: The largest number of bits that may differ.
        folder: A scratch folder, created here.
        candidates: Receives the hashes with an image before them near them, and this image.
    """
    table = SpilledRows(folder, count, "hash", "precedence", "position")
    for hashes, precedence, position in distinct:
        table.add(spread(hashes & mask), hashes, precedence, position)
    for key, hashes, precedence, position in table:
        # In this order, the index of a row says which of two images goes before the other.
        order = np.lexsort((position, precedence))
        key, hashes, precedence, position = (column[order] for column in (key, hashes, precedence, position))
        nearest = _first_near(key, hashes, distance)
        late = np.flatnonzero(nearest < np.arange(len(hashes)))
        other = nearest[late]
        candidates.add(spread(hashes[late]), hashes[late], precedence[other], position[other], hashes[other])


def _first_near(key: np.ndarray, hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return, for each hash, the index of the first hash of the same key near it, which may be itself.

    Args:
        key: uint64 [n].
        hashes: uint64 [n].
        distance: The largest number of bits that may differ.
    """
    order = np.argsort(key, kind="stable")
    nearest = order.copy()
    for left, right in near_pairs(key[order], hashes[order], distance):
        nearest[left] = np.minimum(nearest[left], order[right])
        nearest[right] = np.minimum(nearest[right], order[left])
    result = np.empty_like(nearest)
    result[order] = nearest
    return result


def near_pairs(key: np.ndarray, hashes: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Find the pairs of hashes of the same key that are near each other.

    Args:
        key: uint64 [n], sorted.
        hashes: uint64 [n].
        distance: The largest number of bits that may differ.

    Yields:
        Indices of the left and the right hashes of some pairs. Each index stands at most once on each side.
    """
    pairs = np.arange(len(key))
    for step in itertools.count(1):  # each hash with the one `step` after it, while they share the key
        pairs = pairs[pairs + step < len(key)]
        pairs = pairs[key[pairs] == key[pairs + step]]
        if not len(pairs):
            break
        left = pairs[np.bitwise_count(hashes[pairs] ^ hashes[pairs + step]) <= distance]
        yield left, left + step
