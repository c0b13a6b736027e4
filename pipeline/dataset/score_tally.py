"""Counts scores in memory that does not grow with their number: their moments, and how many there are of each size."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

HALF_BITS = 16
_SIGN = np.uint32(1 << 31)
_ROUNDING = 1e-9
"""Scores that differ by less, relative to their mean, are equal."""
QUANTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
"""The percentiles that a summary names."""


def to_ordered(values: np.ndarray) -> np.ndarray:
    """float32 [n] as uint32 [n] of the same order."""
    bits = values.astype(np.float32).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def from_ordered(bits: np.ndarray) -> np.ndarray:
    """The float32 [n] of which `to_ordered` made the uint32 [n]."""
    return np.where(bits & _SIGN, bits ^ _SIGN, ~bits).astype(np.uint32).view(np.float32)


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of some numbers."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        values = values[np.isfinite(values)].astype(np.float64)
        if not len(values):
            return cls()
        mean = float(values.mean())
        return cls(len(values), mean, float(((values - mean) ** 2).sum()))

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not count:
            return self
        difference = other.mean - self.mean
        mean = self.mean + difference * other.count / count
        squares = self.squares + other.squares + difference**2 * self.count * other.count / count
        return Moments(count, mean, squares)

    @property
    def deviation(self) -> float:
        """The standard deviation; 0 without scores, and if all are equal but for rounding."""
        deviation = float(np.sqrt(self.squares / self.count)) if self.count else 0.0
        return deviation if deviation > _ROUNDING * abs(self.mean) else 0.0


@dataclass
class ScoreTally:
    """Some scores: count, mean, deviation and extremes, which are exact, and percentiles.

    A percentile is rounded towards 0 to the upper 16 bits of a float32: it differs from a score by less than 0.8%, and
    is exact for whole numbers up to 256. So there are at most 65,536 counts.
    """

    moments: Moments = field(default_factory=Moments)
    lowest: float = float("inf")
    highest: float = float("-inf")
    counts: Counter[int] = field(default_factory=Counter)
    """By the upper half of the ordered bits."""

    def add(self, scores: np.ndarray) -> None:
        """Count scores, float [n]; nan is none."""
        values = scores[np.isfinite(scores)]
        if not len(values):
            return
        self.moments += Moments.of(values)
        self.lowest, self.highest = min(self.lowest, float(values.min())), max(self.highest, float(values.max()))
        halves, counts = np.unique(to_ordered(values) >> np.uint32(HALF_BITS), return_counts=True)
        for half, count in zip(halves.tolist(), counts.tolist(), strict=True):
            self.counts[half] += count

    def percentiles(self) -> list[float]:
        """The 101 percentiles, from the lowest score to the highest one; empty without scores.

        Percentile p is the score at place p/100 · (n − 1), rounded down, of n sorted ones counted from 0.
        """
        if not self.moments.count:
            return []
        halves = np.array(sorted(self.counts), np.uint32)
        ends = np.cumsum([self.counts[half] for half in halves.tolist()])
        places = np.arange(101) * (self.moments.count - 1) // 100
        bits = halves[np.searchsorted(ends, places, side="right")] << np.uint32(HALF_BITS)
        # The lower bits that are nearest to 0: zeros of a positive number, and in this order ones of a negative one.
        towards_zero = np.where(bits & _SIGN, bits, bits | np.uint32((1 << HALF_BITS) - 1))
        values = from_ordered(towards_zero).astype(np.float64).clip(self.lowest, self.highest).tolist()
        return [self.lowest, *values[1:-1], self.highest]

    def to_dict(self, full: bool = False) -> dict[str, Any]:
        """`count`, and if there are scores, `mean`, `deviation` and `quantiles`, by percent; with `full`, all 101
        `percentiles` too."""
        if not self.moments.count:
            return {"count": 0}
        percentiles = self.percentiles()
        return {
            "count": self.moments.count,
            "mean": self.moments.mean,
            "deviation": self.moments.deviation,
            "quantiles": {str(percent): percentiles[percent] for percent in QUANTILES},
            **({"percentiles": percentiles} if full else {}),
        }
