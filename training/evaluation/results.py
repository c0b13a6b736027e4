"""The results of several evaluations by model and task, as tables and comparisons use them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation.groups import figures_by_task
from lotlip_data.training.evaluation.outcomes import Outcomes, decode_outcomes
from lotlip_data.training.evaluation.protocol import Protocol

NOT_MEASURED = "–"


@dataclass(frozen=True)
class TaskResult:
    """The figures of one model on one task."""

    task: str
    figures: Mapping[str, Any]
    settings: Mapping[str, Any]
    """What is recorded of the task: title, whether it is partial, statistics, published numbers. Empty if unknown."""
    encoded_outcomes: Mapping[str, Any] | None
    """The outcome of each query, as stored; None in results of early releases."""
    protocol: Protocol
    """Empty in results of early releases."""

    @property
    def title(self) -> str:
        """The title of the task, or its name."""
        return str(self.settings.get("title", self.task))

    @property
    def is_partial(self) -> bool:
        """Whether a part of the task was measured."""
        return bool(self.settings.get("partial", False) or self.figures["damaged"])

    @property
    def has_clusters(self) -> bool:
        """Whether an image has several queries, so that they are drawn together."""
        queries = max(self.figures["queries"].values()) if "queries" in self.figures else self.figures.get("texts", 0)
        return bool(queries > self.figures.get("images", 0) and "intervals" in self.figures)

    def share(self, *path: str) -> float:
        """A share in [0, 1], such as that at `"t2i", "R@1"`."""
        value: Any = self.figures
        for name in path:
            value = value[name]
        return float(value)

    def percent(self, *path: str) -> str:
        """A share in percent with two decimals and its 95% interval; with `*` if a part of the task was measured."""
        interval: Any = self.figures.get("intervals")
        for name in path:
            interval = interval and interval.get(name)
        bounds = " [{:.2f}, {:.2f}]".format(*(100 * bound for bound in interval)) if interval else ""
        return f"{100 * self.share(*path):.2f}{bounds}" + "*" * self.is_partial

    def cut_percents(self) -> tuple[str, str]:
        """The shares of texts and of tokens that were cut. Results of early releases have only the first."""
        tokens = self.figures.get("cut_tokens")
        return f"{100 * self.figures['cut']:.1f}%", NOT_MEASURED if tokens is None else f"{100 * tokens:.1f}%"

    def outcomes(self, model: str) -> Outcomes | None:
        """The outcome of each query; None if the results have none. Raises UserError if they are damaged."""
        if self.encoded_outcomes is None:
            return None
        return decode_outcomes(self.encoded_outcomes, self.figures, f"{model}, {self.title}")


Results = Mapping[str, TaskResult]
"""The results of one model by task."""
Models = Mapping[str, Results]
"""The results of all models by the model's name."""


def group_by_model(evaluations: Sequence[Mapping[str, Any]]) -> Models:
    """The results of each model by its name.

    A model is identified by the digest of its weights, and has the name of its first evaluation. If another model has
    that name already, the beginning of the digest is added. Of two equal results, the one with outcomes is taken.

    Raises:
        UserError: If two results of one model and task differ.
    """
    models: dict[str, dict[str, TaskResult]] = {}
    names: dict[str, str] = {}
    for evaluation in evaluations:
        settings = evaluation["settings"]
        digest = settings["model"]
        name = str(settings.get("name", digest[:12]))
        name = names.setdefault(digest, name if name not in names.values() else f"{name} ({digest[:8]})")
        results = models.setdefault(name, {})
        for task, result in _task_results(evaluation).items():
            first = results.setdefault(task, result)
            if _measured(first.figures) != _measured(result.figures):
                raise UserError(f"{name}: two results of {first.title} have different figures; give only one of them")
            if first.encoded_outcomes is None:
                results[task] = result
    return models


def _task_results(evaluation: Mapping[str, Any]) -> dict[str, TaskResult]:
    tasks, outcomes, protocols = (
        evaluation["settings"].get("tasks", {}),
        evaluation.get("outcomes", {}),
        evaluation.get("protocol", {}),
    )
    return {
        task: TaskResult(task, figures, tasks.get(task, {}), outcomes.get(task), protocols.get(task, {}))
        for task, figures in figures_by_task(evaluation).items()
    }


def _measured(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures without what is computed from them."""
    return {name: value for name, value in figures.items() if name != "intervals"}
