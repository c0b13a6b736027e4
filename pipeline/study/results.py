"""The figures of what has run, by row and seed."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study.data import DEVELOPMENT
from lotlip_data.pipeline.study.experiments import LIMITS, ROWS, Design, Experiment, distinct, limited
from lotlip_data.pipeline.study.significance import MOST_SEEDS, Difference, difference
from lotlip_data.synthetic.scenes import class_names

METRICS = {
    "long": ("person.t2i.R@1", "person.i2t.R@1", "sharegpt4v.t2i.R@1", "sharegpt4v.i2t.R@1"),
    "short": ("short.t2i.R@1", "short.i2t.R@1"),
    "class": ("class.top1",),
    "unrelated": ("unrelated.t2i.R@1", "unrelated.i2t.R@1"),
    "detailed": ("detailed.t2i.R@1", "detailed.i2t.R@1"),
}
"""The means that comparisons are made of."""
CEILINGS = {name: (f"{name}.t2i.most", f"{name}.i2t.most") for name in ("unrelated", "detailed")}
"""What these means can be at most, where that depends on the row."""

ABOVE_CHANCE = 1.0
"""Percentage points that one row at least has to be above chance, for a comparison to tell anything."""
APART_TIMES, APART_POINTS = 2.0, 10.0
"""Seeds of a row are far apart where the highest is above so many times the lowest, and above it by so many points."""

_FIELDS = {"key": str, "seed": int, "figures": dict}
_ALWAYS = (*METRICS["short"], *METRICS["class"], "short.t2i.R@5", "short.i2t.R@5", "flops.text")
_FIGURES = {
    "captioners": (*METRICS["long"], *_ALWAYS),
    "detailed": (
        *(figure for name, most in CEILINGS.items() for figure in (*METRICS[name], *most, f"{name}.cut")),
        *_ALWAYS,
    ),
}
"""Those that a result has, by the texts that its row is trained on."""


class Results:
    """Results of one design; those of development seeds and of other designs are left out.

    contents: all of this design. `left_out` of them were of another. All else is of the first `seeds` seeds.
    """

    def __init__(self, contents: Iterable[Mapping[str, Any]], design: Design, seeds: int = MOST_SEEDS) -> None:
        self._design, self._keys = design, {row: row.key(design) for row in distinct(ROWS)}
        gallery = design.gallery
        scenes, classes = gallery.groups * (1 + gallery.twins), len(class_names())
        sizes = {"long": scenes, "unrelated": scenes, "detailed": scenes, "short": gallery.short, "class": classes}
        self._chance = {metric: 100 / size for metric, size in sizes.items()}
        known = set(self._keys.values())
        given = [content for content in contents if content["seed"] < DEVELOPMENT]
        self.contents = sorted(
            (content for content in given if content["key"] in known),
            key=lambda content: (content["key"], content["seed"]),
        )
        self.left_out = len(given) - len(self.contents)
        shown = [one for one in self.contents if one["seed"] < seeds]
        self.hours = sum(one["seconds"] or 0.0 for one in shown) / 3600
        self._figures: dict[str, dict[int, dict[str, float]]] = {}
        for one in shown:
            self._figures.setdefault(one["key"], {})[one["seed"]] = one["figures"]

    def seeds(self, row: Experiment) -> list[int]:
        """The seeds for which the row has run."""
        return sorted(self._figures.get(self._keys[row], ()))

    def values(self, row: Experiment, metric: str) -> dict[int, float]:
        """A figure, or a mean of METRICS, in percent by seed."""
        return self._means(row, METRICS.get(metric, (metric,)))

    def _means(self, row: Experiment, names: Sequence[str]) -> dict[int, float]:
        of = self._figures.get(self._keys[row], {})
        return {seed: sum(of[seed][name] for name in names) / len(names) for seed in sorted(of)}

    def contrast(self, weights: Mapping[Experiment, float], metric: str) -> Difference | None:
        """The weighted sum of the rows' values, paired by seed; None where too few seeds have run of all of them."""
        values = {row: self.values(row, metric) for row in weights}
        seeds = sorted(set.intersection(*(set(of) for of in values.values())))
        return difference([sum(weight * values[row][seed] for row, weight in weights.items()) for seed in seeds])

    def ceiling_moves(self, weights: Mapping[Experiment, float], metric: str) -> float:
        """The weighted sum of what the rows can have at most, in the mean over their seeds; all of them have run."""
        names = CEILINGS.get(metric, ())
        return (
            sum(weight * fmean(self._means(row, names).values()) for row, weight in weights.items()) if names else 0.0
        )

    def at_chance(self, rows: Iterable[Experiment], metric: str) -> bool:
        """Whether no row's mean over the seeds is ABOVE_CHANCE; all of them have run."""
        return all(fmean(self.values(row, metric).values()) < self._chance[metric] + ABOVE_CHANCE for row in rows)

    def far_apart(self, row: Experiment, metric: str) -> bool:
        """Whether the row's seeds ended in different places, as where some of them had not begun to learn."""
        values = self.values(row, metric).values()
        return bool(values) and max(values) > max(APART_TIMES * min(values), min(values) + APART_POINTS)

    @functools.cached_property
    def padded_flops(self) -> dict[int, float]:
        """By token limit, millions of operations of the text tower on a text that is padded to it."""
        from lotlip_data.pipeline.study.metrics import padded_flops

        return padded_flops(limited(max(LIMITS)).config(self._design, 0), LIMITS)


def read_folder(study: str, design: Design) -> list[dict[str, Any]]:
    """The results in a study's folder, of other designs too. Raises UserError naming a file that is none."""
    urls = [storage.join(study, "results", name) for name in storage.list_names(f"{study}/results", ".json")]
    figures = _figures(design)
    return [_result(storage.read_bytes(url), url, figures) for url in urls]


def read_lines(file: str, design: Design) -> list[dict[str, Any]]:
    """The results of a .jsonl file, of other designs too.

    Raises UserError where there is none, or naming a line that is no result.
    """
    try:
        lines = storage.read_bytes(file).splitlines()
    except OSError as error:
        raise UserError(f"{file}: no results of a study can be read ({error})") from error
    figures = _figures(design)
    return [_result(line, f"{file}, line {number}", figures) for number, line in enumerate(lines, 1)]


def _figures(design: Design) -> dict[str, Sequence[str]]:
    """By key, the figures that a result of this design has."""
    return {row.key(design): _FIGURES[row.texts] for row in distinct(ROWS)}


def _result(text: bytes, where: str, figures: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A result of a row and a seed. Raises UserError where it is none."""
    content = artifacts.parse_json(text, where, _REMEDY, _FIELDS)
    for name in figures.get(content["key"], ()):
        if not isinstance(content["figures"].get(name), int | float):
            raise UserError(f"{where}: its figure {name!r} is missing or no number. {_REMEDY}")
    if not isinstance(content.get("seconds", ""), int | float | None):
        raise UserError(f"{where}: not the result of a training of the study. {_REMEDY}")
    return content


_REMEDY = "Remove it, and `lotlip-data study` does this training again."


def format_text(contents: Sequence[Mapping[str, Any]]) -> str:
    """The results as a .jsonl file, one a line, in their order."""
    return "".join(json.dumps(one, sort_keys=True) + "\n" for one in contents)
