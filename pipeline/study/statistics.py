"""What can be said of a difference between rows, from a few seeds.

Seeds are paired: all rows of a seed share its training scenes, its evaluation scenes and its random numbers, so a
difference is taken seed by seed. Its mean has a 95% interval by Student's t over the seeds. The rule:

    holds outside the noise          the whole interval is on the paper's side
    holds, within the noise          the mean is on the paper's side, the interval is not
    does not hold, within the noise  the mean is on the other side (or nought), the interval is not
    the opposite holds               the whole interval is on the other side
    cannot be told                   no row is as much as a point above chance, whatever their difference
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, two-sided 95%, of 1, 2, … degrees of freedom."""
MOST_SEEDS = len(T_95) + 1


class Verdict(StrEnum):
    HOLDS = "holds outside the noise"
    LEANS = "holds, within the noise"
    LEANS_AWAY = "does not hold, within the noise"
    OPPOSITE = "the opposite holds outside the noise"
    CHANCE = "cannot be told, all at chance"
    UNKNOWN = "not run yet"


@dataclass(frozen=True)
class Difference:
    """The mean of a paired difference, on the paper's side where positive, and its 95% interval."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> Verdict:
        if self.low > 0:
            return Verdict.HOLDS
        if self.high < 0:
            return Verdict.OPPOSITE
        return Verdict.LEANS if self.mean > 0 else Verdict.LEANS_AWAY


def difference(pairs: Sequence[float]) -> Difference | None:
    """The difference whose values by seed these are; None of fewer than two. Raises ValueError of too many."""
    if len(pairs) < 2:
        return None
    if len(pairs) > MOST_SEEDS:
        raise ValueError(f"{len(pairs)} seeds: at most {MOST_SEEDS}")
    mean = statistics.fmean(pairs)
    half = T_95[len(pairs) - 2] * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(mean, mean - half, mean + half, len(pairs))
