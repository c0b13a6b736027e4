"""The combined score: the weighted mean of the standardised scores of several scorers.

A scorer's scores are standardised with the mean and the deviation of all sub-captions of the dataset, so that scores of
different ranges count alike. A score that is missing does not count; without any there is no combined score.

Shapes: N sub-captions or texts, K scorers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-9
"""Scores that differ by less, relative to their mean, are equal."""


@dataclass
class Moments:
    """Mean and deviation of a stream of scores, in memory that does not grow with it (Chan et al., 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared differences from the mean."""

    def add(self, scores: np.ndarray) -> None:
        """Count scores, float [N]. NaN stands for a score that is missing."""
        values = scores[np.isfinite(scores)].astype(np.float64)
        if len(values):
            mean = float(values.mean())
            self.merge(Moments(len(values), mean, float(((values - mean) ** 2).sum())))

    def merge(self, other: "Moments") -> None:
        """Count the scores that `other` has counted."""
        count = self.count + other.count
        if other.count:
            difference = other.mean - self.mean
            self.mean += difference * other.count / count
            self.squares += other.squares + difference**2 * self.count * other.count / count
        self.count = count

    @property
    def deviation(self) -> float:
        """The standard deviation; 0 without scores."""
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0

    def standardise(self, scores: np.ndarray) -> np.ndarray:
        """Scores with mean 0 and variance 1 over the dataset; 0 if all are equal, NaN for a missing one."""
        deviation = self.deviation
        centred = scores.astype(np.float64) - self.mean
        if deviation <= _ROUNDING * abs(self.mean):
            return np.where(np.isnan(centred), np.nan, 0.0)
        return centred / deviation


def combine(
    scores: Mapping[str, np.ndarray], moments: Mapping[str, Moments], weights: Mapping[str, float], lower: Sequence[str]
) -> np.ndarray:
    """float64 [N], the combined score; NaN where no score exists.

    Args:
        scores: By scorer, float [N]; NaN where one is missing.
        moments: By scorer, those of all sub-captions of the dataset.
        weights: By scorer. Default: all alike.
        lower: The scorers whose lower scores are better. They count with a minus.
    """
    names = [name for name in scores if not weights or weights.get(name)]
    signs = {name: -1.0 if name in lower else 1.0 for name in names}
    standard_KN = np.stack([signs[name] * moments[name].standardise(scores[name]) for name in names])
    weights_KN = np.array([[weights.get(name, 1.0)] for name in names]) * np.isfinite(standard_KN)
    total_N = weights_KN.sum(axis=0)
    summed_N = (weights_KN * np.nan_to_num(standard_KN)).sum(axis=0)
    return np.divide(summed_N, total_N, out=np.full(len(total_N), np.nan), where=total_N != 0)
