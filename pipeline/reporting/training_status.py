"""The progress of an unfinished training, from its folder: the last step, the number of steps, and the time left."""

import contextlib
import json
from statistics import fmean
from typing import Any, TypedDict

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.dataset_index import read_dataset_summary
from lotlip_data.manifests.run_layout import TRAINING_METRICS, Run

_TAIL_BYTES = 1 << 16
"""Read from the end of metrics.jsonl: a few hundred steps."""
_ACTIVE_SECONDS = 600
"""A training that has written no metrics for this long is not running: it writes them every ten seconds or so."""


class TrainingStatus(TypedDict):
    """Progress of one unfinished training, as `status --json` prints it."""

    step: int
    """Last step whose metrics are written."""
    steps: int | None
    """Number of steps in all; None if it cannot be computed."""
    loss: float | None
    steps_per_s: float | None
    """None before the first metrics are written, and if the training is not running."""
    seconds_left: int | None
    """Estimated time to completion; None if it is not known."""


def training_status(run: Run, name: str, now: float) -> TrainingStatus:
    """The progress of the training in RUN/train/NAME, at the Unix time `now`."""
    last = _last_metrics(run, name)
    steps, rate = _steps(run, name), None
    changed = storage.last_change(run.train(name), [TRAINING_METRICS])
    if last and changed is not None and now - changed <= _ACTIVE_SECONDS:
        rate = _steps_per_second(run, name, last)
    step = int(last[-1]["step"]) if last else 0
    return {
        "step": step,
        "steps": steps,
        "loss": last[-1].get("loss") if last else None,
        "steps_per_s": rate and round(rate, 3),
        "seconds_left": round(max(0, steps - step) / rate) if rate and steps else None,
    }


def _last_metrics(run: Run, name: str) -> list[dict[str, Any]]:
    """The last lines of metrics.jsonl; none if there is no such file yet."""
    url = run.training_metrics(name)
    size = storage.size(url)
    if not size:
        return []
    with storage.open_read(url) as stream:
        stream.seek(max(0, size - _TAIL_BYTES))
        lines = stream.read().splitlines()
    metrics = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the first line may be cut
            content = json.loads(line)
            if isinstance(content, dict) and isinstance(content.get("step"), int):
                metrics.append(content)
    return metrics


def training_settings(run: Run, name: str) -> dict[str, Any]:
    """The settings that a training started with; none if they are missing or damaged."""
    url = storage.join(run.train(name), "config.json")
    try:
        return artifacts.read_json(url, f"Remove {run.train(name)} and train again.")
    except (FileNotFoundError, UserError):
        return {}


def _steps(run: Run, name: str) -> int | None:
    """The number of steps that the settings give on the run's dataset."""
    settings = training_settings(run, name)
    try:
        samples = read_dataset_summary(run)["splits"]["train"]["samples"]
        return int(settings["epochs"] * samples) // settings["batch"]
    except (UserError, KeyError, TypeError, ZeroDivisionError):
        return None


def _steps_per_second(run: Run, name: str, metrics: list[dict[str, Any]]) -> float | None:
    batch = training_settings(run, name).get("batch")
    rates = [line["samples_per_second"] for line in metrics if line.get("samples_per_second")]
    return fmean(rates) / batch if rates and batch else None
