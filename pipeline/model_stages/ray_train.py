"""Trains on several workers of a Ray cluster. Ray Train places and restarts the workers, `training/` does the rest."""

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.training import Workers
from lotlip_data.pipeline.core.checks import check_gpus
from lotlip_data.pipeline.core.findings import require
from lotlip_data.pipeline.core.gpus import require_assigned
from lotlip_data.pipeline.core.ray_cluster import cluster, cluster_address

if TYPE_CHECKING:
    from lotlip_data.training.trainer import TrainResult

MAX_FAILURES = 100
"""Restarts after a lost worker. At each restart, all workers continue from the last checkpoint."""

_ERROR_FILE = "error.txt"


def train_on_ray(settings: Mapping[str, Any], run: Run, out: str, workers: Workers) -> "TrainResult":
    """Train one model on workers of a Ray cluster.

    Args:
        settings: Settings of the training, as in a manifest.
        run: The run with the dataset.
        out: Path or URL of the training's folder. All workers can read and write it.
        workers: Number of workers, and the resources of each.

    Raises:
        UserError: As `training.trainer.train` does.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from lotlip_data.training.trainer import read_result

    require([check_gpus(f"training {out.rpartition('/')[2]!r}", workers.gpus)])
    error_url = storage.join(out, _ERROR_FILE)
    storage.remove(error_url)
    use_gpu = workers.gpus > 0
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if use_gpu else {})
    with cluster():
        _check_resources({name: workers.workers * amount for name, amount in resources.items()})
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"settings": dict(settings), "run": run.url, "out": out, "use_gpu": use_gpu},
            scaling_config=ScalingConfig(num_workers=workers.workers, use_gpu=use_gpu, resources_per_worker=resources),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=1800),
            run_config=RunConfig(name="ray", storage_path=out, failure_config=FailureConfig(max_failures=MAX_FAILURES)),
        )
        trainer.fit()
    if storage.exists(error_url):
        raise UserError(storage.read_bytes(error_url).decode())
    return read_result(out)


def _check_resources(needed: Mapping[str, float]) -> None:
    """Raise UserError if the workers need more than a machine has that no other machine can join."""
    import ray

    available = ray.cluster_resources()
    missing = [
        f"{amount:g} {name} (it has {available.get(name, 0):g})"
        for name, amount in needed.items()
        if amount > available.get(name, 0)
    ]
    if missing and not cluster_address():
        raise UserError(
            f"the workers of the training need {' and '.join(missing)} of this machine; lower `workers`, or set "
            "RAY_ADDRESS to a cluster"
        )


def _train_worker(arguments: dict[str, Any]) -> None:
    """One worker. A UserError is written to a file for the driver, so that Ray does not restart the workers in vain."""
    import ray.train.torch
    import torch

    from lotlip_data.training.config import make_config
    from lotlip_data.training.devices import on_device
    from lotlip_data.training.trainer import train

    if ray.train.get_context().get_world_rank() == 0:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        device = torch.device("cpu")
        if arguments["use_gpu"]:
            require_assigned(1, f"training {arguments['out'].rpartition('/')[2]!r}")
            device = ray.train.torch.get_device()
            torch.cuda.set_device(device)
        with on_device(device):
            train(make_config(**arguments["settings"]), arguments["run"], arguments["out"])
    except UserError as error:
        storage.replace(storage.join(arguments["out"], _ERROR_FILE), str(error).encode())
