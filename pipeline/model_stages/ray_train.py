"""A training on several workers of a Ray cluster: placement and restarts are Ray Train's, the rest is `training/`."""

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.training import Workers
from lotlip_data.pipeline.core.ray_tasks import cluster

if TYPE_CHECKING:
    from lotlip_data.training.trainer import TrainResult

MAX_FAILURES = 100
"""How often lost workers are replaced: each time all of them go on from the last checkpoint."""


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
            scaling_config=ScalingConfig(num_workers=workers.workers, use_gpu=use_gpu, resources_per_worker=resources),
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
