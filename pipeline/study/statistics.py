"""What paired differences show, and how many seeds show them.

Results are paired by seed: all trainings of a seed share its scenes and its random numbers. So a comparison is a
difference per seed, and its mean is tested by Student's t. Holm's procedure controls the probability that any of
several comparisons is called different though it is not (Holm, Scandinavian Journal of Statistics 6, 1979).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.05
"""Probability of an error of the first kind: of a test, and of a family of tests under Holm's procedure."""
POWER = 0.8
MIN_SEEDS = 3


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its 95% interval by Student's t, and what its test needs."""

    mean: float
    low: float
    high: float
    seeds: int
    deviation: float
    """Standard deviation of the differences."""
    p: float
    """Two-sided p-value of a mean of zero."""

    def interval(self, level: float) -> tuple[float, float]:
        """The interval of a test at another level: for 0.05, that of `low` and `high`."""
        half = quantile(level, self.seeds) * self.deviation / math.sqrt(self.seeds)
        return self.mean - half, self.mean + half


def mean_difference(differences: Sequence[float]) -> Difference | None:
    """The mean of paired differences, one per seed.

    Returns None for fewer than three seeds. Two are not enough: figures come in steps, so two differences are often
    equal, and their interval would have no width.
    """
    from scipy import stats

    count = len(differences)
    if count < MIN_SEEDS:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    error = deviation / math.sqrt(count)
    half = quantile(LEVEL, count) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, count, deviation, p)


def quantile(level: float, seeds: int) -> float:
    """The two-sided quantile of Student's t for so many differences."""
    from scipy import stats

    return float(stats.t.ppf(1 - level / 2, seeds - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, adjusted by Holm's procedure, in the order of `p_values`."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def power(effect: float, deviation: float, seeds: int, level: float = LEVEL) -> float:
    """The probability that the two-sided test finds an effect of this size, in its direction.

    Args:
        effect: The true mean of the differences.
        deviation: Their true standard deviation.
        seeds: Number of differences.
        level: Level of the test.
    """
    from scipy import stats

    shift = abs(effect) / deviation * math.sqrt(seeds)
    return float(stats.nct.sf(quantile(level, seeds), seeds - 1, shift))


def smallest_effect(deviation: float, seeds: int, level: float = LEVEL) -> float:
    """The smallest effect that a test finds with a probability of POWER. Arguments as in `power`."""
    from scipy.optimize import brentq

    if not deviation:
        return 0.0
    return deviation * float(brentq(lambda effect: power(effect, 1.0, seeds, level) - POWER, 1e-6, 100.0))


def needed_seeds(effect: float, deviation: float, level: float = LEVEL, most: int = 1000) -> int | None:
    """The number of seeds with which a test finds an effect with a probability of POWER; None if above `most`."""
    counts = range(MIN_SEEDS, most + 1)
    return next((count for count in counts if smallest_effect(deviation, count, level) <= abs(effect)), None)


def largest_deviation(deviation: float, seeds: int, confidence: float = 0.8) -> float:
    """The one-sided upper confidence bound of a standard deviation that was estimated from so many differences."""
    from scipy import stats

    return deviation * math.sqrt((seeds - 1) / float(stats.chi2.ppf(1 - confidence, seeds - 1)))
