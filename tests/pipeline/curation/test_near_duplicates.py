"""The duplicates equal those of a comparison of all pairs, for any number of buckets."""

import pathlib
import time

import numpy as np
import pytest

from lotlip_data.pipeline.core import spilled_rows
from lotlip_data.pipeline.core.spilled_rows import SpilledRows, spread
from lotlip_data.pipeline.curation import near_duplicates
from lotlip_data.pipeline.curation.perceptual_hash import find_near


def clustered_hashes(seed: int, count: int) -> np.ndarray:
    """Hashes in clusters: many at small distances, some equal; the clusters are far from one another."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, max(1, count // 20), dtype=np.uint64)
    hashes = rng.choice(centres, count)
    for _ in range(6):
        flips = np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
        hashes = np.where(rng.random(count) < 0.3, hashes ^ flips, hashes)
    return hashes


def find(
    hashes: np.ndarray,
    positions: np.ndarray,
    distance: int,
    folder: pathlib.Path,
    precedence: np.ndarray | None = None,
    seed: int = 1,
) -> dict[int, tuple[int, int]]:
    """Return, by position of an image to leave out, the position of the other image and their distance."""
    rows = SpilledRows(folder / "rows", len(hashes), "hash", "precedence", "position")
    precedence = np.zeros(len(hashes), np.uint64) if precedence is None else precedence
    for part in np.array_split(np.random.default_rng(seed).permutation(len(hashes)), 3):
        rows.add(spread(hashes[part]), hashes[part], precedence[part], positions[part])
    parts = near_duplicates.near_duplicates(rows, distance, folder)
    merged = [row for part in parts for row in zip(*(column.tolist() for column in part), strict=True)]
    assert len({position for position, _, _ in merged}) == len(merged)
    return {position: (of, bits) for position, of, bits in merged}


def find_by_all_pairs(
    hashes: np.ndarray, positions: np.ndarray, distance: int, precedence: np.ndarray | None = None
) -> dict[int, tuple[int, int]]:
    precedence = np.zeros(len(hashes), np.uint64) if precedence is None else precedence
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    rank = np.argsort(np.lexsort((positions, precedence)))
    first = np.where(bits <= distance, rank[None, :], len(hashes)).argmin(axis=1)
    return {
        int(positions[row]): (int(positions[other]), int(bits[row, other]))
        for row, other in enumerate(first.tolist())
        if other != row
    }


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 8])
def test_near_duplicates_equal_those_of_all_pairs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, distance: int
) -> None:
    monkeypatch.setattr(spilled_rows, "ROWS_PER_BUCKET", 100)
    hashes = clustered_hashes(distance, 1500)
    positions = np.random.default_rng(2).permutation(1500).astype(np.uint64) << np.uint64(30)
    expected = find_by_all_pairs(hashes, positions, distance)
    assert find(hashes, positions, distance, tmp_path) == expected
    assert 100 < len(expected) < 1500


@pytest.mark.parametrize("distance", [0, 2, 4])
def test_of_near_images_the_one_of_the_lowest_precedence_stays_in_any_order_of_reading(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, distance: int
) -> None:
    """The precedence has few values, so that many images of a cluster are equally large."""
    monkeypatch.setattr(spilled_rows, "ROWS_PER_BUCKET", 100)
    hashes = clustered_hashes(distance, 1500)
    rng = np.random.default_rng(3)
    positions = rng.permutation(1500).astype(np.uint64) << np.uint64(20)
    precedence = np.iinfo(np.uint64).max - rng.integers(0, 6, 1500).astype(np.uint64)
    expected = find_by_all_pairs(hashes, positions, distance, precedence)
    assert expected != find_by_all_pairs(hashes, positions, distance)
    for seed in range(2):
        (folder := tmp_path / str(seed)).mkdir()
        assert find(hashes, positions, distance, folder, precedence, seed) == expected


def test_later_images_change_no_decision(tmp_path: pathlib.Path) -> None:
    hashes, positions = clustered_hashes(5, 1200), np.arange(1200, dtype=np.uint64)
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    before = find(hashes[:800], positions[:800], 4, tmp_path / "before")
    after = find(hashes, positions, 4, tmp_path / "after")
    assert {late: of for late, of in after.items() if late < 800} == before
    assert len(after) > len(before)


def test_no_hash_and_one_hash_have_no_duplicates(tmp_path: pathlib.Path) -> None:
    for count in (0, 1):
        (folder := tmp_path / str(count)).mkdir()
        assert find(clustered_hashes(0, count), np.arange(count, dtype=np.uint64), 4, folder) == {}


def test_many_blank_images_are_not_compared_with_one_another(tmp_path: pathlib.Path) -> None:
    """200,000 equal hashes, which would be 20 billion pairs."""
    hashes, positions = np.full(200_000, 1 << 63, np.uint64), np.arange(200_000, dtype=np.uint64)
    started = time.monotonic()
    assert find(hashes, positions, 4, tmp_path) == dict.fromkeys(range(1, 200_000), (0, 0))
    assert time.monotonic() - started < 300


@pytest.mark.parametrize("bucket", [50, 10_000])
def test_exact_duplicates_point_to_the_earliest_image(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bucket: int
) -> None:
    monkeypatch.setattr(spilled_rows, "ROWS_PER_BUCKET", bucket)
    rng = np.random.default_rng(0)
    upper, lower = rng.integers(0, 2**64, 40, dtype=np.uint64)[rng.integers(0, 40, 1000)], rng.integers(0, 3, 1000)
    positions = rng.permutation(1000).astype(np.uint64)
    rows = SpilledRows(tmp_path / "rows", 1000, "lower", "position")
    rows.add(upper, lower.astype(np.uint64), positions)
    duplicates = {
        int(a): int(b) for late, of, _ in near_duplicates.exact_duplicates(rows) for a, b in zip(late, of, strict=True)
    }
    earliest: dict[tuple[int, int], int] = {}
    for image in sorted(zip(positions.tolist(), upper.tolist(), lower.tolist(), strict=True)):
        earliest.setdefault(image[1:], image[0])
    digests = zip(positions.tolist(), upper.tolist(), lower.tolist(), strict=True)
    assert duplicates == {at: earliest[a, b] for at, a, b in digests if earliest[a, b] != at}
    assert len(duplicates) > 800


def test_find_near_gives_the_nearest_of_the_others() -> None:
    others = np.array([0b1111, 0b0001, 0b0111], np.uint64)
    assert list(find_near(np.array([0b0011, 0, 2**40 - 1], np.uint64), others, 1)) == [(0, 1), (1, 1)]
    assert list(find_near(np.array([1], np.uint64), np.array([], np.uint64), 8)) == []
