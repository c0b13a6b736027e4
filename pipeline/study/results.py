"""The figures of what has run, by row and seed."""

import json
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study.data import DEVELOPMENT
from lotlip_data.pipeline.study.rows import ROWS, Design, Row, distinct
from lotlip_data.pipeline.study.statistics import Difference, difference
from lotlip_data.world.scenes import class_names

METRICS = {
    "long": ("person.t2i.R@1", "person.i2t.R@1", "sharegpt4v.t2i.R@1", "sharegpt4v.i2t.R@1"),
    "short": ("short.t2i.R@1", "short.i2t.R@1"),
    "class": ("class.top1",),
    "detailed": ("detailed.t2i.R@1", "detailed.i2t.R@1"),
}
"""The means that comparisons are made of."""

ABOVE_CHANCE = 1.0
"""Percentage points that one row at least has to be above chance, for a comparison to tell anything."""


class Results:
    """Results of one design; those of development seeds and of other designs are left out."""

    def __init__(self, contents: Iterable[Mapping[str, Any]], design: Design) -> None:
        self._keys = {row: row.key(design) for row in distinct(ROWS)}
        gallery = design.gallery
        scenes, classes = gallery.groups * (1 + gallery.twins), len(class_names())
        sizes = {"long": scenes, "detailed": scenes, "short": gallery.short, "class": classes}
        self._chance = {metric: 100 / size for metric, size in sizes.items()}
        known = set(self._keys.values())
        self.contents = sorted(
            (content for content in contents if content["key"] in known and content["seed"] < DEVELOPMENT),
            key=lambda content: (content["key"], content["seed"]),
        )
        self._figures: dict[str, dict[int, dict[str, float]]] = {}
        for one in self.contents:
            self._figures.setdefault(one["key"], {})[one["seed"]] = one["figures"]

    def seeds(self, row: Row) -> list[int]:
        """The seeds for which the row has run."""
        return sorted(self._figures.get(self._keys[row], ()))

    def values(self, row: Row, metric: str) -> dict[int, float]:
        """A figure, or a mean of METRICS, in percent by seed."""
        names, of = METRICS.get(metric, (metric,)), self._figures.get(self._keys[row], {})
        return {seed: sum(of[seed][name] for name in names) / len(names) for seed in sorted(of)}

    def contrast(self, weights: Mapping[Row, float], metric: str) -> Difference | None:
        """The weighted sum of the rows' values, paired by seed; None with fewer than two common seeds."""
        values = {row: self.values(row, metric) for row in weights}
        seeds = sorted(set.intersection(*(set(of) for of in values.values())))
        return difference([sum(weight * values[row][seed] for row, weight in weights.items()) for seed in seeds])

    def at_chance(self, rows: Iterable[Row], metric: str) -> bool:
        """Whether no row's mean over the seeds is ABOVE_CHANCE; all of them have run."""
        return all(fmean(self.values(row, metric).values()) < self._chance[metric] + ABOVE_CHANCE for row in rows)


def read_folder(study: str) -> list[dict[str, Any]]:
    """The results in a study's folder."""
    folder = storage.join(study, "results")
    return [json.loads(storage.read_bytes(storage.join(folder, name))) for name in storage.list_names(folder, ".json")]


def read_lines(file: str) -> list[dict[str, Any]]:
    """The results of a .jsonl file. Raises UserError where there is none, or not of this form."""
    try:
        contents = [json.loads(line) for line in storage.read_bytes(file).decode().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: no results of a study can be read ({error})") from error
    if not all(isinstance(one, dict) and {"key", "seed", "figures"} <= one.keys() for one in contents):
        raise UserError(f"{file}: not the results of a study; name a results.jsonl that `lotlip-data study` wrote")
    return contents


def as_lines(results: Results) -> str:
    """The results as a .jsonl file, one a line, in an order of their own."""
    return "".join(json.dumps(one, sort_keys=True) + "\n" for one in results.contents)
