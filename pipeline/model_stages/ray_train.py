"""A training on several workers of a Ray cluster: placement and restarts are Ray Train's, the rest is `training/`."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.ray_tasks import cluster

if TYPE_CHECKING:
    from lotlip_data.training.trainer import TrainResult

MAX_FAILURES = 100
"""How often lost workers are replaced: each time all of them go on from the last checkpoint."""


@dataclass(frozen=True)
class Workers:
    """How many processes train, and what each of them needs."""

    workers: int = 1
    gpus: float = 1
    cpus: float = 4

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Workers":
        """Raises UserError where a name or a value is wrong."""
        names = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or (unknown := [name for name in given if name not in names]):
            raise UserError(f"ray: {given if not isinstance(given, Mapping) else unknown[0]}; give {', '.join(names)}")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise UserError(f"ray: {name}: {value!r} is no number")
        if given.get("workers", 1) < 1 or given.get("workers", 1) % 1:
            raise UserError(f"ray: workers: {given['workers']} is not a whole number of at least 1")
        return cls(**given)


def train_on_ray(settings: Mapping[str, Any], run: Run, out: str, workers: Workers) -> "TrainResult":
    """Train on such workers. Raises UserError as `training.train` does."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from lotlip_data.training.trainer import read_result

    error = storage.join(out, "error.txt")
    storage.remove(error)
    use_gpu = workers.gpus > 0
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if use_gpu else {})
    with cluster():
        trainer = TorchTrainer(
            _work,
            train_loop_config={"settings": dict(settings), "run": run.url, "out": out},
            scaling_config=ScalingConfig(
                num_workers=int(workers.workers), use_gpu=use_gpu, resources_per_worker=resources
            ),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=1800),
            run_config=RunConfig(name="ray", storage_path=out, failure_config=FailureConfig(max_failures=MAX_FAILURES)),
        )
        trainer.fit()
    if storage.exists(error):
        raise UserError(storage.read_bytes(error).decode())
    return read_result(out)


def _work(given: dict[str, Any]) -> None:
    """One worker. What only a person can mend is left for the driver and ends it: another start would not help."""
    import ray.train
    import torch

    from lotlip_data.training.config import make_config
    from lotlip_data.training.trainer import train

    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    if ray.train.get_context().get_world_rank() == 0:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        train(make_config(**given["settings"]), given["run"], given["out"])
    except UserError as error:
        storage.replace(storage.join(given["out"], "error.txt"), str(error).encode())
