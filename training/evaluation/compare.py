"""Which differences between two models are real: paired intervals over the queries of each set.

Both models answer the same queries, so what is drawn again and again is the difference of each query (`bootstrap.py`).
That is much narrower than two separate intervals suggest, because most queries are equally easy or hard for both. If
two results have different queries, for example because images could not be read, the interval is an unpaired one.

The verdict of a figure is

    NAME is higher          the interval does not contain zero, and at least MIN_DIFFERING images differ
    not decided             the interval contains zero, or fewer images differ
"""

from dataclasses import dataclass
from typing import Any

from lotlip_data.manifests.wording import plural
from lotlip_data.training.evaluation.bootstrap import (
    LEVEL,
    MIN_DIFFERING,
    RESAMPLES,
    differing_clusters,
    paired_interval,
    unpaired_interval,
)
from lotlip_data.training.evaluation.outcomes import REMEDY, SELECTION_LABELS, Outcomes, Path
from lotlip_data.training.evaluation.protocol import protocol_differences
from lotlip_data.training.evaluation.results import Results, TaskResult
from lotlip_data.training.evaluation.table_text import Format, Table, write

UNDECIDED = "not decided"
CLUSTERS_NOTE = "; the queries of one image are drawn together"
CHANCE_NOTE = (
    "Each interval stands for itself: of 20 figures that do not differ, about one is called different. Draws of the "
    "queries say nothing of what another seed of the training would give"
)


@dataclass(frozen=True)
class Difference:
    """One figure of both models."""

    task: str
    title: str
    path: Path
    shares: tuple[float, float]
    interval: tuple[float, float]
    """Of the second share minus the first."""
    clusters: int
    """Number of images that were drawn."""
    differing: int | None
    """Number of images for which the models differ; None if the queries are not the same."""
    models: tuple[str, str]

    @property
    def difference(self) -> float:
        """The second share minus the first."""
        return self.shares[1] - self.shares[0]

    @property
    def verdict(self) -> str:
        """See the description of this module."""
        low, high = self.interval
        is_decided = (low > 0 or high < 0) and (self.differing is None or self.differing >= MIN_DIFFERING)
        return f"{self.models[low > 0]} is higher" if is_decided else UNDECIDED

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON."""
        return {
            "task": self.task,
            "figure": " ".join(self.path),
            "shares": list(self.shares),
            "difference": self.difference,
            "interval": list(self.interval),
            "paired": self.differing is not None,
            "images": self.clusters,
            "differing": self.differing,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Comparison:
    """All differences of two models, what could not be compared, and what to know of it."""

    models: tuple[str, str]
    differences: tuple[Difference, ...]
    missing: tuple[str, ...]
    """Per task, why it is not compared."""
    warnings: tuple[str, ...]
    """Differences of protocol, and sets whose queries are not the same."""
    has_clusters: bool
    """Whether an image has several queries in a set."""

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return {
            "models": list(self.models),
            "level": LEVEL,
            "resamples": RESAMPLES,
            "differences": [difference.to_dict() for difference in self.differences],
            "missing": list(self.missing),
            "warnings": list(self.warnings),
        }

    def text(self, form: Format = "markdown") -> str:
        """A table of the differences, with notes."""
        first, second = self.models
        rows = [
            (
                difference.title,
                _figure_name(difference.path),
                *(f"{100 * share:.2f}" for share in difference.shares),
                f"{100 * difference.difference:+.2f}",
                "[{:+.2f}, {:+.2f}]".format(*(100 * bound for bound in difference.interval)),
                "–" if difference.differing is None else f"{difference.differing:,} / {difference.clusters:,}",
                difference.verdict,
            )
            for difference in self.differences
        ]
        columns = ("Task", "Figure", first, second, "Difference", "95% interval", "Images that differ", "Verdict")
        notes = (*self._notes(), *self.missing, *self.warnings)
        return write(Table(f"{first} and {second}: {second} minus {first}", columns, tuple(rows), notes), form)

    def _notes(self) -> list[str]:
        if not self.differences:
            return ["There is no figure that can be compared"]
        together = CLUSTERS_NOTE * self.has_clusters
        return [
            f"Paired bootstrap over the same queries, {RESAMPLES:,} draws{together}. No difference is called real if "
            f"fewer than {MIN_DIFFERING} images differ",
            CHANCE_NOTE,
        ]


def compare(first: Results, second: Results, models: tuple[str, str]) -> Comparison:
    """Compare the results of two models on the tasks that both have.

    Args:
        first: The results of the first model by task, as `group_by_model` returns them.
        second: Those of the second model.
        models: The names of both.

    Raises:
        UserError: If the outcomes of a result are damaged.
    """
    differences: list[Difference] = []
    missing: list[str] = []
    warnings: list[str] = []
    compared: list[TaskResult] = []
    for task in dict.fromkeys((*first, *second)):
        if task not in first or task not in second:
            lacking, title = (models[0], second[task].title) if task in second else (models[1], first[task].title)
            missing.append(f"{title}: {lacking} has no result of it")
            continue
        both = first[task], second[task]
        warnings += _protocol_warnings(both, models)
        outcomes = both[0].outcomes(models[0]), both[1].outcomes(models[1])
        if outcomes[0] is None or outcomes[1] is None:
            missing.append(_without_outcomes(both[0].title, models, outcomes))
            continue
        is_paired = outcomes[0].queries == outcomes[1].queries
        if not is_paired:
            warnings.append(
                f"{both[0].title}: the results have different images or texts, so their intervals are unpaired"
            )
        compared += both
        differences += _differences(both, (outcomes[0], outcomes[1]), models, is_paired)
    has_clusters = any(result.has_clusters for result in compared)
    return Comparison(models, tuple(differences), tuple(missing), tuple(warnings), has_clusters)


def _without_outcomes(title: str, models: tuple[str, str], outcomes: tuple[Outcomes | None, Outcomes | None]) -> str:
    lacking = [name for name, each in zip(models, outcomes, strict=True) if each is None]
    return (
        f"{title}: not compared, because {' and '.join(lacking)} {plural(len(lacking), 'has')} no outcome per query: "
        f"an earlier release wrote the file; remove it and {REMEDY}"
    )


def _protocol_warnings(both: tuple[TaskResult, TaskResult], models: tuple[str, str]) -> list[str]:
    protocols = {name: result.protocol for name, result in zip(models, both, strict=True)}
    found = protocol_differences(protocols)
    return [f"Measured with different protocols, {both[0].title}: {'; '.join(found)}"] if found else []


def _differences(
    both: tuple[TaskResult, TaskResult], outcomes: tuple[Outcomes, Outcomes], models: tuple[str, str], is_paired: bool
) -> list[Difference]:
    """The differences of one task, for the figures that both results have."""
    differences = []
    for path in outcomes[0].hits:
        if path not in outcomes[1].hits:
            continue
        shares = both[0].share(*path), both[1].share(*path)
        sizes = outcomes[0].cluster_sizes(path)
        hits = outcomes[0].hits[path], outcomes[1].hits[path]
        if is_paired:
            interval = paired_interval(*hits, sizes)
            differing = differing_clusters(*hits, sizes)
        else:
            intervals = outcomes[0].interval(path), outcomes[1].interval(path)
            interval = unpaired_interval(shares[0], intervals[0], shares[1], intervals[1])
            differing = None
        differences.append(
            Difference(both[0].task, both[0].title, path, shares, interval, len(sizes), differing, models)
        )
    return differences


def _figure_name(path: Path) -> str:
    if path[0] in SELECTION_LABELS:
        return f"{path[1]} {SELECTION_LABELS[path[0]]}"
    return " ".join((path[0].upper(), *path[1:])) if len(path) > 1 else "Acc."
