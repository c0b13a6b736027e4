"""The loss of each training of a run over its steps, from metrics.jsonl, in a bounded number of points."""

import json
import math
from dataclasses import dataclass, field

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run

POINTS = 200
"""Smallest number of points at which neighbouring ones are merged; a curve has less than twice as many."""


@dataclass
class LossCurve:
    """The loss of one training; each point is the mean of some steps in a row."""

    steps: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    last_step: int = 0
    last_loss: float | None = None
    unreadable: int = 0
    """Lines without a step and a finite loss."""
    _per_point: int = 1
    _sum: float = 0.0
    _count: int = 0

    def add(self, step: int, loss: float) -> None:
        """Add the loss of a step; steps come in order."""
        self.last_step, self.last_loss = step, loss
        self._sum, self._count = self._sum + loss, self._count + 1
        if self._count < self._per_point:
            return
        self.steps.append(step - (self._count - 1) / 2)
        self.losses.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self.steps) >= 2 * POINTS:
            self.steps, self.losses = _merge_pairs(self.steps), _merge_pairs(self.losses)
            self._per_point *= 2


def read_losses(run: Run) -> tuple[dict[str, LossCurve], list[str]]:
    """Return the curves of the trainings that have one, by name, and the problems of their files."""
    curves, problems = {}, []
    for name in storage.list_names(run.trainings):
        url = run.training_metrics(name)
        try:
            curve = _read(url)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{url}: cannot be read ({error}).")
            continue
        if curve.unreadable:
            problems.append(f"{url}: {curve.unreadable:,} lines have no step with a finite loss; the curve lacks them.")
        if curve.steps:
            curves[name] = curve
    return curves, problems


def _read(url: str) -> LossCurve:
    curve = LossCurve()
    with storage.open_read(url) as stream:
        for line in stream:
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                step, loss = int(values["step"]), float(values["loss"])
            except (ValueError, KeyError, TypeError, RecursionError):
                curve.unreadable += 1
                continue
            if math.isfinite(loss):
                curve.add(step, loss)
            else:
                curve.unreadable += 1
    return curve


def _merge_pairs(values: list[float]) -> list[float]:
    return [(first + second) / 2 for first, second in zip(values[::2], values[1::2], strict=True)]
