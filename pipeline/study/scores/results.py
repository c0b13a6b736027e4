"""The results of the study of scores, by role, error rate and seed."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests import storage
from lotlip_data.pipeline.study import cells
from lotlip_data.pipeline.study.scores.design import FIRST_DEVELOPMENT_SEED, ROLES, Role, ScoresDesign
from lotlip_data.pipeline.study.statistics import Difference, mean_difference
from lotlip_data.pipeline.study.world import METRICS

_REMEDY = "Remove it, and `lotlip-data study-scores` repeats this training."


@with_config(ConfigDict(extra="allow"))
class _Result(TypedDict):
    """The result of a cell."""

    key: str
    seed: int
    rate: float
    role: Role
    figures: dict[str, float | None]
    seconds: float


class ScoresResults:
    """The results of one design. Those of development seeds and of other designs are excluded.

    Attributes:
        contents: All results of the design, in order.
        hours: Hours of computation.
    """

    def __init__(self, contents: Iterable[Mapping[str, Any]], design: ScoresDesign) -> None:
        keys = {design.key(role) for role in ROLES}
        chosen = [each for each in contents if each["key"] in keys and each["seed"] < FIRST_DEVELOPMENT_SEED]
        self.contents = sorted(chosen, key=lambda each: (each["seed"], each["rate"], ROLES.index(each["role"])))
        self.hours = sum(each["seconds"] for each in self.contents) / 3600

    def values(self, role: Role, rate: float, figure: str) -> dict[int, float]:
        """A figure, or the metric `long` of the study, by seed. Seeds without it are left out."""
        values: dict[int, float] = {}
        for content in self.contents:
            if (content["role"], content["rate"]) == (role, rate):
                parts = [content["figures"].get(name) for name in METRICS.get(figure, (figure,))]
                known = [part for part in parts if part is not None]
                if len(known) == len(parts):
                    values[content["seed"]] = sum(known) / len(known)
        return values

    def gain(self, role: Role, rate: float) -> Difference | None:
        """The gain of a role over `all` in long-text retrieval, paired by seed; None for fewer than three seeds."""
        own, plain = (self.values(each, rate, "long") for each in (role, "all"))
        return mean_difference([own[seed] - plain[seed] for seed in sorted(own.keys() & plain.keys())])


def read_folder(study: str) -> list[dict[str, Any]]:
    """The results in a study's folder. Raises UserError that names the file if one is no result."""
    return cells.read_folder(storage.join(study, "scores-results"), _Result, _REMEDY)


def read_lines(file: str) -> list[dict[str, Any]]:
    """The results in a .jsonl file. Raises UserError if it cannot be read, or if a line is no result."""
    return cells.read_lines(file, _Result, _REMEDY, identity=("key", "seed", "rate"))
