"""The results of the reproduction study by arm and seed, and the verdicts on its primary comparisons.

A primary comparison

    holds         its test is significant after Holm's correction for all primary comparisons, and the mean has the
                  expected sign
    is reversed   the same, with the other sign
    is level      otherwise, if the whole 95% interval is within LEVEL_POINTS of zero
    is undecided  otherwise

There is no verdict before all planned trainings have run, those of other comparisons included: their number was fixed
in advance, and a test that is read again after every seed errs more often than its level says.
"""

import functools
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests import storage
from lotlip_data.pipeline.study import cells
from lotlip_data.pipeline.study.comparisons import LEVEL_POINTS, PRIMARY, Comparison
from lotlip_data.pipeline.study.curves import Curve, last_fall
from lotlip_data.pipeline.study.design import ARMS, Design, PlannedSeeds
from lotlip_data.pipeline.study.statistics import LEVEL, Difference, holm, mean_difference
from lotlip_data.pipeline.study.world import METRICS, Figures

_REMEDY = "Remove it, and `lotlip-data study` repeats this training."


class Verdict(StrEnum):
    """What a primary comparison shows; see the module's docstring."""

    HOLDS = "holds"
    REVERSED = "is reversed"
    LEVEL = "is level"
    UNDECIDED = "is undecided"
    UNFINISHED = "is unfinished"


_Finite = Annotated[float, Field(allow_inf_nan=False)]


@with_config(ConfigDict(extra="allow"))
class _Result(TypedDict):
    """The result of a training."""

    key: str
    arm: str
    seed: int
    steps: int
    seconds: _Finite | None
    figures: dict[str, Annotated[float, Field(ge=0, le=100)]]
    """In percent."""
    chance: _Finite
    """The loss of guessing."""
    curve: dict[str, list[_Finite]]


class Results:
    """The results of one design for the planned seeds.

    Attributes:
        planned: The planned seeds of each arm. Results of other seeds are left out.
        contents: The results, in order of arms and seeds.
        excluded: Number of results of other designs.
        hours: Hours of computation on one core.
    """

    def __init__(self, contents: Iterable[Mapping[str, Any]], design: Design, planned: PlannedSeeds) -> None:
        keys = {arm.key(design): name for name, arm in ARMS.items()}
        order, self.planned = list(ARMS), planned
        seeds = {seed for of_arm in planned.values() for seed in of_arm}
        candidates = [content for content in contents if content["seed"] in seeds]
        known = [content for content in candidates if content["key"] in keys]
        known = [content for content in known if content["seed"] in planned[keys[content["key"]]]]
        self.contents = sorted(known, key=lambda content: (order.index(keys[content["key"]]), content["seed"]))
        self.excluded = sum(content["key"] not in keys for content in candidates)
        self.hours = sum(content["seconds"] or 0.0 for content in known) / 3600
        self._by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
        for content in self.contents:
            self._by_arm.setdefault(keys[content["key"]], {})[content["seed"]] = content

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """A figure, or a metric of METRICS, of an arm by seed, in percent. Seeds without it are left out."""
        names = METRICS.get(metric, (metric,))
        figures: dict[int, Figures] = {seed: each["figures"] for seed, each in self._by_arm.get(arm, {}).items()}
        return {
            seed: sum(of[name] for name in names) / len(names)
            for seed, of in figures.items()
            if all(name in of for name in names)
        }

    def differences(self, comparison: Comparison) -> list[float]:
        """The weighted sum of the arms' values, for each seed that all of them have."""
        values = {name: self.values(name, comparison.metric) for name in comparison.arms}
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in values.values())))
        return [sum(weight * values[name][seed] for name, weight in comparison.weights) for seed in seeds]

    def difference(self, comparison: Comparison) -> Difference | None:
        """The mean difference; None for fewer than three seeds."""
        return mean_difference(self.differences(comparison))

    @property
    def is_finished(self) -> bool:
        """Whether all planned trainings have run."""
        return len(self.contents) == sum(map(len, self.planned.values()))

    @functools.cached_property
    def adjusted(self) -> dict[Comparison, float]:
        """Holm's p-value of each primary comparison. One of fewer than three seeds counts as p = 1."""
        found = [self.difference(comparison) for comparison in PRIMARY]
        return dict(zip(PRIMARY, holm([each.p if each else 1.0 for each in found]), strict=True))

    def verdict(self, comparison: Comparison) -> Verdict:
        """The verdict on a primary comparison."""
        difference = self.difference(comparison)
        if difference is None or not self.is_finished:
            return Verdict.UNFINISHED
        if self.adjusted[comparison] < LEVEL:
            return Verdict.HOLDS if difference.mean * comparison.sign > 0 else Verdict.REVERSED
        is_level = difference.low > -LEVEL_POINTS and difference.high < LEVEL_POINTS
        return Verdict.LEVEL if is_level else Verdict.UNDECIDED

    def curves(self, arm: str) -> list[Curve]:
        """The loss curves of an arm, one per seed."""
        return [content["curve"] for content in self._by_arm.get(arm, {}).values()]

    def last_falls(self, arm: str) -> list[float]:
        """For each seed the `last_fall` of the loss."""
        return [last_fall(content["curve"], content["chance"]) for content in self._by_arm.get(arm, {}).values()]

    def seconds(self, arm: str) -> list[float]:
        """CPU seconds of a training with its evaluation, for each seed where they are known."""
        return [each["seconds"] for each in self._by_arm.get(arm, {}).values() if each["seconds"] is not None]


def read_folder(study: str) -> list[cells.Content]:
    """The results in a study's folder. Raises UserError that names the file if one is no result."""
    return cells.read_folder(storage.join(study, "results"), _Result, _REMEDY)


def read_lines(file: str) -> list[cells.Content]:
    """The results in a .jsonl file. Raises UserError if it cannot be read, or if a line is no result."""
    return cells.read_lines(file, _Result, _REMEDY, identity=("key", "seed"))
