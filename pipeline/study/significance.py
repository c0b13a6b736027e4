"""What a difference between experiments shows, given results of a few seeds.

Results are paired by seed: all experiments of a seed share its training scenes, its evaluation scenes and its random
numbers. So differences are taken per seed, and the mean difference has a 95% interval by Student's t over the seeds.
If the paper has a direction, the verdict is

    holds outside the noise           the whole interval is on the paper's side of zero
    leans the paper's way             the mean is on the paper's side, the interval contains zero
    leans the other way               the mean is on the other side, or zero, and the interval contains zero
    reversed outside the noise        the whole interval is on the other side

If the paper has both experiments level, the verdict is

    no difference beyond the noise    the interval contains zero
    differs outside the noise         the interval does not contain zero

Other verdicts take precedence: there are too few seeds, all experiments are at chance, the difference is no larger than
that of the highest possible values, or a statement about a loss is tested where nothing is lost.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95% quantiles of Student's t for 1, 2, … degrees of freedom."""
MIN_SEEDS, MAX_SEEDS = 3, len(T_95) + 1


class Verdict(StrEnum):
    """What a comparison shows; see the module's docstring."""

    HOLDS = "holds outside the noise"
    LEANS = "leans the paper's way, within the noise"
    LEANS_AWAY = "leans the other way, within the noise"
    OPPOSITE = "reversed outside the noise"
    LEVEL = "no difference beyond the noise, as in the paper"
    UNEVEN = "differs outside the noise, but is level in the paper"
    MOOT = "not applicable: nothing is lost"
    CEILING = "inconclusive: the ceiling moves as far"
    CHANCE = "inconclusive: all rows are at chance"
    UNKNOWN = "not run yet with three seeds"


@dataclass(frozen=True)
class Difference:
    """The mean of a paired difference and the bounds of its 95% interval."""

    mean: float
    low: float
    high: float
    seeds: int

    def verdict(self, sign: int) -> Verdict:
        """The verdict if the paper has the difference above zero (sign 1), below zero (-1) or level (0)."""
        above, below = self.low > 0, self.high < 0
        if sign == 0:
            return Verdict.UNEVEN if above or below else Verdict.LEVEL
        if above or below:
            return Verdict.HOLDS if above == (sign > 0) else Verdict.OPPOSITE
        return Verdict.LEANS if sign * self.mean > 0 else Verdict.LEANS_AWAY


def mean_difference(differences: Sequence[float]) -> Difference | None:
    """The mean and 95% interval of paired differences, one per seed.

    Returns None for fewer than three seeds. Two are not enough: figures come in steps, so two differences are often
    equal, and their interval would have no width.

    Raises:
        ValueError: There are more than MAX_SEEDS seeds.
    """
    if len(differences) < MIN_SEEDS:
        return None
    if len(differences) > MAX_SEEDS:
        raise ValueError(f"{len(differences)} seeds are too many: at most {MAX_SEEDS} are supported")
    mean = statistics.fmean(differences)
    half = T_95[len(differences) - 2] * statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(mean, mean - half, mean + half, len(differences))
