"""The results of the study, by experiment and seed."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study.data import FIRST_DEVELOPMENT_SEED
from lotlip_data.pipeline.study.experiments import (
    EXPERIMENTS,
    TOKEN_LIMITS,
    Design,
    Experiment,
    distinct_experiments,
    with_token_limit,
)
from lotlip_data.pipeline.study.significance import MAX_SEEDS, Difference, mean_difference
from lotlip_data.synthetic.scenes import class_names

METRICS = {
    "long": ("person.t2i.R@1", "person.i2t.R@1", "sharegpt4v.t2i.R@1", "sharegpt4v.i2t.R@1"),
    "short": ("short.t2i.R@1", "short.i2t.R@1"),
    "class": ("class.top1",),
    "unrelated": ("unrelated.t2i.R@1", "unrelated.i2t.R@1"),
    "detailed": ("detailed.t2i.R@1", "detailed.i2t.R@1"),
}
"""The metrics that comparisons use, each the mean of several figures."""
CEILINGS = {name: (f"{name}.t2i.most", f"{name}.i2t.most") for name in ("unrelated", "detailed")}
"""The figures whose mean is the highest possible value of a metric, where that depends on the experiment."""

ABOVE_CHANCE_POINTS = 1.0
"""Percentage points by which at least one experiment must be above chance for a comparison to be conclusive."""
FAR_APART_FACTOR, FAR_APART_POINTS = 2.0, 10.0
"""Seeds are far apart if the best exceeds the worst by more than this factor and by more than these points."""


@with_config(ConfigDict(extra="allow"))
class _Result(TypedDict):
    """The result of a training of the study."""

    key: str
    seed: int
    figures: dict[str, Any]
    seconds: NotRequired[float | None]


_COMMON_FIGURES = (*METRICS["short"], *METRICS["class"], "short.t2i.R@5", "short.i2t.R@5", "flops.text")
_FIGURES = {
    "captioners": (*METRICS["long"], *_COMMON_FIGURES),
    "detailed": (
        *(figure for name, most in CEILINGS.items() for figure in (*METRICS[name], *most, f"{name}.cut")),
        *_COMMON_FIGURES,
    ),
}
"""The figures of a result, by the texts that its experiment trains on."""
_REMEDY = "Remove it, and `lotlip-data study` repeats this training."


class Results:
    """The results of one design. Those of development seeds and of other designs are excluded.

    Attributes:
        contents: All results of the design, of any seed.
        excluded: Number of results of other designs.
        hours: Hours of training of the first `seeds` seeds.

    The methods use the first `seeds` seeds only.
    """

    def __init__(self, contents: Iterable[Mapping[str, Any]], design: Design, seeds: int = MAX_SEEDS) -> None:
        self._design = design
        self._keys = {experiment: experiment.key(design) for experiment in distinct_experiments(EXPERIMENTS)}
        self._chance = _chance(design)
        known = set(self._keys.values())
        candidates = [content for content in contents if content["seed"] < FIRST_DEVELOPMENT_SEED]
        self.contents = sorted(
            (content for content in candidates if content["key"] in known),
            key=lambda content: (content["key"], content["seed"]),
        )
        self.excluded = len(candidates) - len(self.contents)
        selected = [content for content in self.contents if content["seed"] < seeds]
        self.hours = sum(content["seconds"] or 0.0 for content in selected) / 3600
        self._figures: dict[str, dict[int, dict[str, float]]] = {}
        for content in selected:
            self._figures.setdefault(content["key"], {})[content["seed"]] = content["figures"]

    def seeds(self, experiment: Experiment) -> list[int]:
        """The seeds for which the experiment has run."""
        return sorted(self._figures.get(self._keys[experiment], ()))

    def values(self, experiment: Experiment, metric: str) -> dict[int, float]:
        """A figure or a metric of METRICS, per seed, in percent."""
        return self._means(experiment, METRICS.get(metric, (metric,)))

    def contrast(self, weights: Mapping[Experiment, float], metric: str) -> Difference | None:
        """The weighted sum of the experiments' values, paired by seed.

        Returns None if all the experiments have run for fewer than three common seeds.
        """
        values = {experiment: self.values(experiment, metric) for experiment in weights}
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in values.values())))
        return mean_difference([sum(weight * values[each][seed] for each, weight in weights.items()) for seed in seeds])

    def ceiling_change(self, weights: Mapping[Experiment, float], metric: str) -> float:
        """The weighted sum of the experiments' highest possible values, averaged over seeds; all must have run."""
        figures = CEILINGS.get(metric, ())
        if not figures:
            return 0.0
        return sum(weight * fmean(self._means(each, figures).values()) for each, weight in weights.items())

    def at_chance(self, experiments: Iterable[Experiment], metric: str) -> bool:
        """Whether no experiment's mean exceeds chance by ABOVE_CHANCE_POINTS; all must have run."""
        limit = self._chance[metric] + ABOVE_CHANCE_POINTS
        return all(fmean(self.values(experiment, metric).values()) < limit for experiment in experiments)

    def far_apart(self, experiment: Experiment, metric: str) -> bool:
        """Whether the seeds are far apart, as when training has left its initial plateau for some of them only."""
        values = self.values(experiment, metric).values()
        return bool(values) and max(values) > max(FAR_APART_FACTOR * min(values), min(values) + FAR_APART_POINTS)

    @functools.cached_property
    def padded_flops(self) -> dict[int, float]:
        """MFLOP of the text tower per text that is padded to a token limit, by limit."""
        from lotlip_data.pipeline.study.metrics import padded_flops

        return padded_flops(with_token_limit(max(TOKEN_LIMITS)).config(self._design, 0), TOKEN_LIMITS)

    def _means(self, experiment: Experiment, names: Sequence[str]) -> dict[int, float]:
        figures = self._figures.get(self._keys[experiment], {})
        return {seed: sum(figures[seed][name] for name in names) / len(names) for seed in sorted(figures)}


def _chance(design: Design) -> dict[str, float]:
    """The chance level of each metric, in percent."""
    gallery = design.gallery
    scenes, classes = gallery.groups * (1 + gallery.twins), len(class_names())
    sizes = {"long": scenes, "unrelated": scenes, "detailed": scenes, "short": gallery.short, "class": classes}
    return {metric: 100 / size for metric, size in sizes.items()}


def read_folder(study: str, design: Design) -> list[dict[str, Any]]:
    """The results in a study's folder, those of other designs included.

    Raises UserError that names the file if one is no result.
    """
    urls = [storage.join(study, "results", name) for name in storage.list_names(f"{study}/results", ".json")]
    figures = _required_figures(design)
    return [_parse_result(storage.read_bytes(url), url, figures) for url in urls]


def read_lines(file: str, design: Design) -> list[dict[str, Any]]:
    """The results in a .jsonl file, those of other designs included.

    Raises UserError if the file cannot be read, or if a line is no result.
    """
    figures = _required_figures(design)
    return [_parse_result(line, where, figures) for line, where in lines_of(file)]


def lines_of(file: str) -> list[tuple[bytes, str]]:
    """The lines of a .jsonl file, each with its place for errors. Raises UserError if it cannot be read."""
    try:
        lines = storage.read_bytes(file).splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot read the results of a study ({error})") from error
    return [(line, f"{file}, line {number}") for number, line in enumerate(lines, 1)]


def format_text(contents: Sequence[Mapping[str, Any]]) -> str:
    """The results as a .jsonl file, one per line, in their order."""
    return "".join(json.dumps(content, sort_keys=True) + "\n" for content in contents)


def _required_figures(design: Design) -> dict[str, Sequence[str]]:
    """The figures that a result of this design has, by the result's key."""
    return {each.key(design): _FIGURES[each.texts] for each in distinct_experiments(EXPERIMENTS)}


def _parse_result(text: bytes, where: str, figures: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Parse and check a result. Raises UserError with the place `where` if it is none."""
    content: dict[str, Any] = dict(artifacts.parse_json(text, where, _REMEDY, _Result))
    for name in figures.get(content["key"], ()):
        if not isinstance(content["figures"].get(name), int | float):
            raise UserError(f"{where}: its figure {name!r} is missing or no number. {_REMEDY}")
    return content
