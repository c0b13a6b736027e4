"""What can be said of a difference between rows, from a few seeds.

Seeds are paired: all rows of a seed share its training scenes, its evaluation scenes and its random numbers, so a
difference is taken seed by seed. Its mean has a 95% interval by Student's t over the seeds. The rule for a direction:

    holds outside the noise           the whole interval is on the paper's side
    leans the paper's way             the mean is on the paper's side, the interval is not
    leans the other way               the mean is on the other side (or nought), the interval is not
    the opposite holds                the whole interval is on the other side

and for two rows that the paper has level:

    no difference told                the interval has nought in it
    differs                           it has not

Above them all: too few seeds tell nothing, nor do rows of which none is as much as a point above chance, nor does a
difference that is no larger than that of what the rows can have at most; and what is said of a loss says nothing where
there is none.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, two-sided 95%, of 1, 2, … degrees of freedom."""
LEAST_SEEDS, MOST_SEEDS = 3, len(T_95) + 1


class Verdict(StrEnum):
    HOLDS = "holds outside the noise"
    LEANS = "leans the paper's way, within the noise"
    LEANS_AWAY = "leans the other way, within the noise"
    OPPOSITE = "the opposite holds outside the noise"
    LEVEL = "no difference told, as in the paper"
    UNEVEN = "differs outside the noise, where the paper is level"
    MOOT = "does not arise here"
    CEILING = "cannot be told, the ceiling moves as far"
    CHANCE = "cannot be told, all at chance"
    UNKNOWN = "not run yet with three seeds"


@dataclass(frozen=True)
class Difference:
    """The mean of a paired difference and its 95% interval."""

    mean: float
    low: float
    high: float
    seeds: int

    def verdict(self, sign: int) -> Verdict:
        """Of a paper that has the difference above nought (1), below it (-1), or level (0)."""
        above, below = self.low > 0, self.high < 0
        if sign == 0:
            return Verdict.UNEVEN if above or below else Verdict.LEVEL
        if above or below:
            return Verdict.HOLDS if above == (sign > 0) else Verdict.OPPOSITE
        return Verdict.LEANS if sign * self.mean > 0 else Verdict.LEANS_AWAY


def difference(pairs: Sequence[float]) -> Difference | None:
    """The difference whose values by seed these are; None of fewer than three. Raises ValueError of too many.

    Two tell nothing: figures come in steps, so two differences are often equal, and their interval has no width.
    """
    if len(pairs) < LEAST_SEEDS:
        return None
    if len(pairs) > MOST_SEEDS:
        raise ValueError(f"{len(pairs)} seeds: at most {MOST_SEEDS}")
    mean = statistics.fmean(pairs)
    half = T_95[len(pairs) - 2] * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(mean, mean - half, mean + half, len(pairs))
