"""The trainings of a manifest's `train` section."""

import logging
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.training import TrainingEntry, Workers
from lotlip_data.pipeline.core.logs import log_prefix
from lotlip_data.pipeline.core.outcome import Outcome, one_line

if TYPE_CHECKING:
    from lotlip_data.training.config import TrainConfig
    from lotlip_data.training.trainer import TrainResult

logger = logging.getLogger(__name__)


def training_config(entry: TrainingEntry) -> "TrainConfig":
    """The configuration of a training. Raises UserError where settings do not fit together."""
    from lotlip_data.training.config import make_config

    return make_config(**entry.settings)


def check(entries: Sequence[TrainingEntry], where: str) -> None:
    """Raises UserError, naming the file `where`, entry and fix, where an entry could not be trained on any data."""
    for place, entry in enumerate(entries):
        try:
            training_config(entry)
        except UserError as error:
            raise UserError(f"{where}: `train.{place}`: {error}") from None
    names = [entry.folder for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: `train`: {', '.join(twice)} is named twice; give one of them another `name`")


def train(
    manifest: Manifest,
    run: Run,
    entries: Sequence[TrainingEntry] = (),
    resume: bool = True,
    workers: Workers | None = None,
) -> Outcome:
    """Train each model of the manifest's `train` section.

    Args:
        manifest: The manifest of the run.
        run: The run with the dataset.
        entries: Trainings in place of the manifest's.
        resume: Continue from the last checkpoint.
        workers: Workers of a Ray cluster for every training, in place of the entries' `ray`.
    """
    import os

    import torch

    from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks

    fit = partial(_fit, run, resume, workers)
    total = Outcome(did_something=False)
    if not entries:
        check(manifest.train, run.manifest)
    asked = list(entries or manifest.train)
    finished = [entry for entry in asked if storage.exists(run.training_done(entry.folder))]
    left = [entry for entry in asked if entry not in finished]
    several = workers or any(entry.ray for entry in asked) or os.environ.get("WORLD_SIZE", "1") != "1"
    many = torch.cuda.is_available() or several
    here = finished if len(left) > 1 and not many else asked
    results: Any = ((entry, fit(entry)) for entry in here)
    if here is finished:  # without a GPU, a training is one core's work, so they go side by side
        logger.info(f"{len(left)} trainings, a CPU each; their steps are in {run.train('NAME')}/metrics.jsonl")
        results = chain(results, run_ray_tasks(fit, left))
    for entry, result in results:
        name = entry.folder
        if isinstance(result, Exception):
            total.failed.append(f"{name}: {one_line(result)}")
            logger.warning(total.failed[-1])
            continue
        if result.did_something:
            total.lines.append(f"{name}: {result.steps} steps, loss {result.loss:.3f}, {result.seconds:.0f} s")
            logger.info(total.lines[-1])
        total.did_something |= result.did_something
        total.figures[name] = {"steps": result.steps, "loss": result.loss, "seconds": result.seconds}
    return total


def _fit(
    run: Run,
    resume: bool,
    workers: Workers | None,
    entry: TrainingEntry,
) -> "TrainResult":
    from lotlip_data.training.trainer import require_new
    from lotlip_data.training.trainer import train as fit

    config, out = training_config(entry), run.train(entry.folder)
    workers = workers or entry.ray
    if workers is None:
        with log_prefix(entry.folder):
            return fit(config, run.url, out, resume=resume)
    from lotlip_data.pipeline.model_stages.ray_train import train_on_ray

    if not resume:
        require_new(out)
    return train_on_ray(entry.settings, run, out, workers)
