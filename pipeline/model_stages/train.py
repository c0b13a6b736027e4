"""Trains the models of a manifest's `train` section, in this process, on Ray workers, or side by side on CPUs."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import SUMMARY_LINE, Progress, Snapshot, progress_bar
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.training import TrainingEntry, Workers
from lotlip_data.pipeline.core.checks import check_model
from lotlip_data.pipeline.core.findings import Check, require
from lotlip_data.pipeline.core.logs import log_prefix
from lotlip_data.pipeline.core.outcome import Outcome, one_line

if TYPE_CHECKING:
    from lotlip_data.training.config import TrainConfig
    from lotlip_data.training.trainer import TrainResult

logger = logging.getLogger(__name__)


def training_config(entry: TrainingEntry) -> "TrainConfig":
    """The configuration of a training. Raises UserError if its settings do not fit together."""
    from lotlip_data.training.config import make_config

    return make_config(**entry.settings)


def check_trainings(entries: Sequence[TrainingEntry], where: str) -> None:
    """Check trainings before any stage runs.

    Args:
        entries: The trainings.
        where: The manifest's file, for error messages.

    Raises:
        UserError: The settings of an entry do not fit together, or two entries have the same name.
    """
    for index, entry in enumerate(entries):
        try:
            training_config(entry)
        except UserError as error:
            raise UserError(f"{where}: `train.{index}`: {error}") from None
    names = [entry.folder for entry in entries]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: `train`: {', '.join(repeated)} is named twice; give one of them another `name`")


def towers(entries: Iterable[TrainingEntry]) -> list[tuple[str, str]]:
    """What each tower of the trainings is, and its model, each pair once. Those that open_clip finds are left out."""
    pairs: set[tuple[str, str]] = set()
    for config in map(training_config, entries):
        if config.start_from is None:
            pairs |= {("image tower", config.image_tower), ("text tower", config.text_tower)}
        elif not config.start_from.startswith("open_clip:"):
            pairs.add(("start_from", config.start_from))
    return sorted(pairs)


def check_towers(entries: Iterable[TrainingEntry]) -> list[Check]:
    """Whether the towers of the trainings are available. It asks the hub once per tower, and loads none."""
    return [check_model(subject, model) for subject, model in towers(entries)]


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
        resume: Continue from the last checkpoint. If False, the folders must be new.
        workers: Workers of a Ray cluster for every training, in place of the entries' `ray`.
    """
    if not entries:
        check_trainings(manifest.train, run.manifest)
    total = Outcome(did_something=False)
    for entry, result in _train_all(list(entries or manifest.train), run, resume, workers):
        name = entry.folder
        if isinstance(result, Exception):
            total.failed.append(f"{name}: {one_line(result)}")
            logger.warning(total.failed[-1])
            continue
        if result.did_something:
            steps, seconds = wording.count(result.steps, "step"), wording.duration(result.seconds)
            total.lines.append(f"{name}: {steps}, loss {result.loss:.3f}, {seconds}")
            logger.info(total.lines[-1], extra=SUMMARY_LINE)
        total.did_something |= result.did_something
        total.figures[name] = {"steps": result.steps, "loss": result.loss, "seconds": result.seconds}
    return total


def _train_all(
    entries: Sequence[TrainingEntry], run: Run, resume: bool, workers: Workers | None
) -> Iterator[tuple[TrainingEntry, "TrainResult | Exception"]]:
    """Train the models one after another, or side by side if each of them uses one CPU only."""
    import torch

    from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks
    from lotlip_data.training.data.dataset import open_dataset

    fit = partial(_fit, run, resume, workers)
    finished = [entry for entry in entries if storage.exists(run.training_done(entry.folder))]
    unfinished = [entry for entry in entries if entry not in finished]
    if unfinished:
        open_dataset(run.url)  # before the hub is asked
        require(check_towers(unfinished))
        storage.check_writable(run.trainings)
    is_distributed = workers or any(entry.ray for entry in entries) or os.environ.get("WORLD_SIZE", "1") != "1"
    if len(unfinished) <= 1 or is_distributed or torch.cuda.is_available():
        for entry in entries:
            yield entry, fit(entry)
        return
    logger.info(
        f"{len(unfinished)} trainings run side by side, on one CPU each; "
        f"{run.train('NAME')}/metrics.jsonl has the steps of each"
    )
    for entry in finished:
        yield entry, fit(entry)
    with _Bars() as bars:
        yield from run_ray_tasks(partial(_fit_in_task, run, resume), unfinished, on_progress=bars.show)


class _Bars:
    """One bar per training that runs on a Ray worker, from the first state that it sends."""

    def __init__(self) -> None:
        self._bars: dict[str, Progress] = {}

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *error: object) -> None:
        for bar in self._bars.values():
            bar.close()

    def show(self, running: Sequence[tuple[TrainingEntry, Snapshot]]) -> None:
        for entry, state in running:
            name = entry.folder
            if name not in self._bars:
                self._bars[name] = progress_bar(name, state.total, state.unit, initial=state.done)
            self._bars[name].note(*state.notes)
            self._bars[name].advance_to(state.done)


def _fit_in_task(run: Run, resume: bool, entry: TrainingEntry) -> "TrainResult":
    """Train one model in a Ray task, on the device that Ray reserved for it."""
    from lotlip_data.pipeline.core.ray_tasks import assigned_device, device_failures
    from lotlip_data.training.devices import on_device

    subject = f"training {entry.folder!r}"
    with device_failures(subject), on_device(assigned_device(subject)):
        return _fit(run, resume, None, entry)


def _fit(run: Run, resume: bool, workers: Workers | None, entry: TrainingEntry) -> "TrainResult":
    """Train one model, or read the result of a finished training."""
    from lotlip_data.training.trainer import require_new
    from lotlip_data.training.trainer import train as train_model

    config, out = training_config(entry), run.train(entry.folder)
    workers = workers or entry.ray
    if workers is None:
        with log_prefix(entry.folder):
            return train_model(config, run.url, out, resume=resume)
    from lotlip_data.pipeline.model_stages.ray_train import train_on_ray

    if not resume:
        require_new(out)
    return train_on_ray(entry.settings, run, out, workers)
