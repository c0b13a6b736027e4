"""The trainings of a manifest's `train` section: each entry holds settings of `TrainConfig`, a `name`, and `ray`."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.logs import log_prefix
from lotlip_data.pipeline.core.outcome import Outcome, one_line

if TYPE_CHECKING:
    from lotlip_data.training.config import TrainConfig
    from lotlip_data.training.trainer import TrainResult

logger = logging.getLogger(__name__)


def training_name(entry: Mapping[str, Any]) -> str:
    """Of its folder: its method's where none is given."""
    return str(entry.get("name", entry.get("method", "lotlip")))


def training_settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `make_config`."""
    return {key: value for key, value in entry.items() if key not in ("name", "ray")}


def training_config(entry: Mapping[str, Any]) -> "TrainConfig":
    """Raises UserError where a name or a value is wrong."""
    from lotlip_data.training.config import make_config

    return make_config(**training_settings(entry))


def check(entries: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raises UserError, naming the file `where`, entry and fix, where an entry could not be trained on any data."""
    from lotlip_data.pipeline.model_stages.ray_train import Workers

    for place, entry in enumerate(entries):
        try:
            training_config(entry)
            if entry.get("ray") is not None:
                Workers.of(entry["ray"])
        except UserError as error:
            raise UserError(f"{where}: `train.{place}`: {error}") from None
    names = [training_name(entry) for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: `train`: {', '.join(twice)} is named twice; give one of them another `name`")


def train(
    manifest: Manifest,
    run: Run,
    entries: Sequence[Mapping[str, Any]] = (),
    resume: bool = True,
    on_ray: Mapping[str, Any] | None = None,
) -> Outcome:
    """Train each model of the manifest's `train` section in turn; `entries` go before it.

    An entry holds settings of `TrainConfig`, a `name`, which is its method's where none is given, and, for a training
    on Ray, `ray`: its `workers`, and the `gpus` and `cpus` of each. `on_ray` has these for all entries.
    """
    import os

    import torch

    from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks

    fit = partial(_fit, run, resume, on_ray)
    total = Outcome(did_something=False)
    if not entries:
        check(manifest.train, run.manifest)
    asked = list(entries or manifest.train)
    finished = [entry for entry in asked if storage.exists(run.training_done(training_name(entry)))]
    left = [entry for entry in asked if entry not in finished]
    several = on_ray or any("ray" in entry for entry in asked) or os.environ.get("WORLD_SIZE", "1") != "1"
    many = torch.cuda.is_available() or several
    here = finished if len(left) > 1 and not many else asked
    results: Any = ((entry, fit(entry)) for entry in here)
    if here is finished:  # without a GPU, a training is one core's work, so they go side by side
        logger.info(f"{len(left)} trainings, a CPU each; their steps are in {run.train('NAME')}/metrics.jsonl")
        results = chain(results, run_ray_tasks(fit, left))
    for entry, result in results:
        name = training_name(entry)
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
    on_ray: Mapping[str, Any] | None,
    entry: Mapping[str, Any],
) -> "TrainResult":
    from lotlip_data.training.trainer import require_new
    from lotlip_data.training.trainer import train as fit

    config, out = training_config(entry), run.train(training_name(entry))
    workers = on_ray or entry.get("ray")
    if workers is None:
        with log_prefix(training_name(entry)):
            return fit(config, run.url, out, resume=resume)
    from lotlip_data.pipeline.model_stages.ray_train import Workers, train_on_ray

    if not resume:
        require_new(out)
    return train_on_ray(training_settings(entry), run, out, Workers.of(workers))
