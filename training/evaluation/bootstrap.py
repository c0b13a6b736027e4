"""95% intervals of shares and of differences of shares, by drawing the queries of a set again and again.

A set has Q queries, each found (1) or not (0). Queries that belong to one image, such as the five texts of an image of
MSCOCO, are not independent: they form one of C clusters, and clusters are drawn as a whole. The interval is that of the
2.5% and 97.5% quantiles of the shares of RESAMPLES such draws.

Clusters with the same number of queries and the same total are interchangeable. So a draw is how often each kind of
cluster occurs, which is multinomial: time and memory depend on the number of kinds and not on Q.

If all clusters are alike, every draw is the same and would give an interval without width. Then the interval reaches
as far as clusters of another kind may exist without one of C drawn: their share is below 1 − 0.025^(1/C), with a
confidence of 97.5%. For a share of 1 this is the exact binomial (Clopper-Pearson) interval.
"""

import math

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 0
MIN_DIFFERING = 6
"""The fewest clusters that must differ between two models. If five differ, all in one direction, a fair coin gives
such a result in either direction with a probability of 0.0625; if six differ, of 0.031."""
_COUNTS_PER_BLOCK = 2**20
"""Number of counts in memory at a time: 8 MiB."""

Interval = tuple[float, float]
Values = NDArray[np.int64]


def share_interval(hits: NDArray[np.bool_], cluster_sizes: Values) -> Interval:
    """The interval of the share of hits.

    Args:
        hits: Whether each query is found, [Q]; the queries of a cluster are neighbours.
        cluster_sizes: Number of queries of each cluster, [C], with the sum Q.
    """
    return _interval(hits.astype(np.int64), cluster_sizes, 0.0)


def paired_interval(first: NDArray[np.bool_], second: NDArray[np.bool_], cluster_sizes: Values) -> Interval:
    """The interval of the share of the second model's hits minus that of the first one's, for the same queries."""
    return _interval(second.astype(np.int64) - first.astype(np.int64), cluster_sizes, -1.0)


def unpaired_interval(first: float, first_interval: Interval, second: float, second_interval: Interval) -> Interval:
    """The interval of `second` − `first` for different queries, from the intervals of both (Newcombe's method 10)."""
    below = math.hypot(second - second_interval[0], first_interval[1] - first)
    above = math.hypot(second_interval[1] - second, first - first_interval[0])
    return max(-1.0, second - first - below), min(1.0, second - first + above)


def differing_clusters(first: NDArray[np.bool_], second: NDArray[np.bool_], cluster_sizes: Values) -> int:
    """The number of clusters of which the models find different numbers of queries."""
    return int(np.count_nonzero(_totals(second.astype(np.int64) - first.astype(np.int64), cluster_sizes)))


def _totals(values: Values, cluster_sizes: Values) -> Values:
    """The sum of each cluster, [C]."""
    if len(values) == 0:
        return np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.cumsum(cluster_sizes)[:-1]])
    totals: Values = np.add.reduceat(values, starts)
    return totals


def _interval(values: Values, cluster_sizes: Values, lowest: float) -> Interval:
    """The interval of the mean of `values` [Q], which lies between `lowest` and 1."""
    if len(values) != int(cluster_sizes.sum()):
        raise ValueError(f"{len(values)} queries, but the clusters have {int(cluster_sizes.sum())}")
    clusters = len(cluster_sizes)
    if not clusters:
        return lowest, 1.0
    pairs = np.stack([_totals(values, cluster_sizes), cluster_sizes], axis=1)
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    tail = (1 - LEVEL) / 2
    totals, sizes = kinds.T
    if np.all(totals * sizes[0] == totals[0] * sizes):
        share, reach = float(totals[0] / sizes[0]), 1 - tail ** (1 / clusters)
        return max(lowest, share - reach), min(1.0, share + reach)
    random = np.random.default_rng(SEED)
    shares = np.empty(RESAMPLES)
    rows = max(1, _COUNTS_PER_BLOCK // len(kinds))
    for start in range(0, RESAMPLES, rows):
        block = shares[start : start + rows]
        drawn = random.multinomial(clusters, counts / clusters, size=len(block))
        block[:] = (drawn @ totals) / (drawn @ sizes)
    low, high = np.quantile(shares, [tail, 1 - tail])
    return float(low), float(high)
