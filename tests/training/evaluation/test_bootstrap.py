"""Intervals are those of the binomial distribution where it has one, cover as often as they say, and heed clusters."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from lotlip_data.training.evaluation import bootstrap
from lotlip_data.training.evaluation.bootstrap import (
    MIN_DIFFERING,
    differing_clusters,
    paired_interval,
    share_interval,
    unpaired_interval,
)


def _hits(found, queries):
    return np.arange(queries) < found


def _ones(clusters):
    return np.ones(clusters, np.int64)


@pytest.mark.parametrize(("queries", "found"), [(50, 25), (612, 575), (1_000, 620), (7_805, 4_847), (100_000, 30_000)])
def test_the_interval_of_independent_queries_is_that_of_the_binomial_distribution(queries, found):
    """Within one query and a tenth of the standard error: what 10,000 draws leave to chance is 0.03 of it."""
    share = found / queries
    tolerance = 1 / queries + 0.1 * math.sqrt(share * (1 - share) / queries)
    expected = binom.ppf([0.025, 0.975], queries, share) / queries
    assert share_interval(_hits(found, queries), _ones(queries)) == pytest.approx(tuple(expected), abs=tolerance)


@pytest.mark.parametrize("queries", [1, 40, 612])
def test_without_a_miss_or_without_a_hit_the_interval_is_the_exact_binomial_one(queries):
    for found in (0, queries):
        exact = binomtest(found, queries).proportion_ci(method="exact")
        low, high = share_interval(_hits(found, queries), _ones(queries))
        assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_the_interval_of_clusters_is_that_of_drawing_clusters_one_by_one():
    """Within an eighth of the standard error. Clusters of 1 to 6 queries, with an ability of their own."""
    random = np.random.default_rng(1)
    sizes = random.integers(1, 7, 200)
    hits = random.random(sizes.sum()) < np.repeat(random.beta(1, 1, 200), sizes)
    totals = np.add.reduceat(hits.astype(int), np.cumsum(sizes) - sizes)
    drawn = random.integers(0, 200, (10_000, 200))
    shares = totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    expected = tuple(np.quantile(shares, [0.025, 0.975]))
    assert share_interval(hits, sizes) == pytest.approx(expected, abs=shares.std() / 8)


def test_intervals_cover_the_truth_in_95_of_100_sets():
    """Within 3 points, in 600 simulated sets of 300 queries that are found with a probability of 0.8."""
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(600):
        low, high = share_interval(random.random(300) < 0.8, _ones(300))
        covered += low <= 0.8 <= high
    assert covered / 600 == pytest.approx(0.95, abs=0.03)


def test_clustered_intervals_cover_the_truth_and_those_that_ignore_clusters_do_not():
    """200 sets of 150 images with five texts each, which are all easy or all hard: within 3 points of 95%."""
    random = np.random.default_rng(3)
    covered = {"clustered": 0, "ignored": 0}
    for _ in range(200):
        hits = random.random((150, 5)) < random.choice([0.4, 0.9], (150, 1))
        for name, sizes in (("clustered", np.full(150, 5)), ("ignored", _ones(750))):
            low, high = share_interval(hits.ravel(), sizes)
            covered[name] += low <= 0.65 <= high
    assert covered["clustered"] / 200 == pytest.approx(0.95, abs=0.03)
    assert covered["ignored"] / 200 < 0.88


def test_paired_intervals_cover_the_difference_and_are_narrower_than_unpaired_ones():
    """300 pairs of models, of which the second finds 3% of the queries more. Both agree on most queries."""
    random = np.random.default_rng(4)
    covered = 0
    for _ in range(300):
        easiness = random.random(1_000)
        first, second = easiness < 0.70 + random.normal(0, 0.03, 1_000), easiness < 0.73 + random.normal(0, 0.03, 1_000)
        low, high = paired_interval(first, second, _ones(1_000))
        covered += low <= 0.03 <= high
    assert covered / 300 == pytest.approx(0.95, abs=0.03)
    separate = (share_interval(hits, _ones(1_000)) for hits in (first, second))
    wide = unpaired_interval(first.mean(), next(separate), second.mean(), next(separate))
    assert high - low < (wide[1] - wide[0]) / 2 and wide[0] < low < high < wide[1]


def test_unpaired_intervals_cover_the_difference_of_two_sets():
    """Within 3 points of 95%, in 400 pairs of sets of other queries."""
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        first, second = random.random(300) < 0.6, random.random(500) < 0.7
        intervals = share_interval(first, _ones(300)), share_interval(second, _ones(500))
        low, high = unpaired_interval(first.mean(), intervals[0], second.mean(), intervals[1])
        covered += low <= 0.1 <= high
    assert covered / 400 == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("disagreement", [0.004, 0.02, 0.2])
def test_equal_models_are_called_different_in_at_most_7_of_100_sets(disagreement):
    """Also where they disagree on four of 1,000 queries, and intervals of so few would exclude zero too often."""
    random = np.random.default_rng(6)
    different = 0
    for _ in range(300):
        first = random.random(1_000) < 0.7
        flips = random.random(1_000) < disagreement / 2 / np.where(first, 0.7, 0.3)
        low, high = paired_interval(first, first ^ flips, _ones(1_000))
        few = differing_clusters(first, first ^ flips, _ones(1_000)) < MIN_DIFFERING
        different += (low > 0 or high < 0) and not few
    assert different / 300 <= 0.07


def test_equal_outcomes_leave_room_for_clusters_that_were_not_drawn():
    hits = _hits(30, 100)
    reach = 1 - 0.025 ** (1 / 100)
    assert paired_interval(hits, hits, _ones(100)) == pytest.approx((-reach, reach))
    assert paired_interval(hits, hits, np.full(20, 5)) == pytest.approx(
        (-(1 - 0.025 ** (1 / 20)), 1 - 0.025 ** (1 / 20))
    )


def test_intervals_are_the_same_each_time_and_in_blocks_of_any_size(monkeypatch):
    random = np.random.default_rng(7)
    sizes = random.integers(1, 9, 500)
    hits = random.random(sizes.sum()) < 0.4
    whole = share_interval(hits, sizes)
    monkeypatch.setattr(bootstrap, "_COUNTS_PER_BLOCK", 700)
    assert share_interval(hits, sizes) == whole


def test_clusters_that_do_not_fit_the_queries_are_an_error():
    with pytest.raises(ValueError, match="6 queries, but the clusters have 5"):
        share_interval(_hits(2, 6), np.array([2, 3]))


@pytest.mark.parametrize("texts_per_image", [1, 5])
def test_100_000_queries_take_less_than_32_mib(texts_per_image):
    random = np.random.default_rng(8)
    hits, sizes = random.random(100_000) < 0.6, np.full(100_000 // texts_per_image, texts_per_image)
    tracemalloc.start()
    try:
        low, high = share_interval(hits, sizes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < high - low < 0.02 and peak < 32 * 2**20
