"""Computes the features of a dataset's images by a locked image tower before a training, one Ray task per shard."""

import functools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import progress_bar
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.training import PAPER_TOWER
from lotlip_data.pipeline.core.checks import check_gpus, check_model
from lotlip_data.pipeline.core.findings import require
from lotlip_data.pipeline.core.outcome import Outcome, one_line
from lotlip_data.pipeline.core.ray_cluster import cluster, cpus_per_gpu
from lotlip_data.pipeline.core.ray_tasks import assigned_cpus, assigned_device, device_failures, run_ray_tasks
from lotlip_data.pipeline.model_stages.train import training_config

if TYPE_CHECKING:
    from lotlip_data.training.data.feature_cache import FeatureCache

logger = logging.getLogger(__name__)

GPUS_PER_TASK = 0.5
"""Two tasks on a GPU: while one reads its tar and writes its features, the other computes."""
MAX_CPUS = 8
"""CPUs of a task on a GPU, at most: more decoding threads only wait for the interpreter."""


@dataclass
class FeaturesSummary:
    """What one call did."""

    existing: int
    """Number of shards that had features."""
    computed: int = 0
    """Number of shards whose features this call computed."""
    failed: list[str] = field(default_factory=list)
    """One line with the reason per shard whose features could not be computed."""


def compute_features(run: Run, tower: str, image_size: int | None, gpus: float | None) -> FeaturesSummary:
    """Compute the missing features that trainings with this image tower read.

    Args:
        run: The run with the dataset.
        tower: Folder or hub id of the image tower; `clip:NAME` or `open_clip:NAME` for that of a whole CLIP.
        image_size: Side of the square images in pixels; None takes the tower's.
        gpus: GPUs that Ray reserves per task. Default: GPUS_PER_TASK where the cluster has GPUs, else none.

    Raises:
        UserError: The run has no dataset, or the tower cannot be loaded.
    """
    from lotlip_data.training.data.dataset import open_dataset

    open_dataset(run.url)  # before the hub is asked for the tower
    if not tower.startswith("open_clip:"):
        require([check_model("image tower", tower.removeprefix("clip:"))])
    cache = _open_cache(run.url, tower, image_size)
    missing = cache.missing()
    summary = FeaturesSummary(cache.shards - len(missing))
    logger.info(
        f"image features: {len(missing):,} of {wording.count(cache.shards, 'shard')} to compute, in {cache.folder}"
    )
    if not missing:
        return summary
    storage.check_writable(cache.folder)
    task = functools.partial(_compute_shard, run.url, tower, image_size)
    with cluster(), progress_bar("features", len(missing), "shard") as bar:
        num_gpus, num_cpus = task_resources(gpus, cpus_per_gpu())
        logger.info(f"a task has {num_gpus:g} of a GPU and {wording.count(num_cpus, 'CPU')}")
        for index, answer in run_ray_tasks(task, missing, num_gpus=num_gpus, num_cpus=num_cpus):
            bar.update()
            if isinstance(answer, Exception):
                summary.failed.append(f"shard {index}: {one_line(answer)}")
                logger.warning(summary.failed[-1])
                continue
            summary.computed += 1
    return summary


def task_resources(gpus: float | None, cpus_per_gpu: float | None) -> tuple[float, int]:
    """GPUs and CPUs of a task. A task on a GPU gets the CPUs that belong to its part, since decoding takes longest.

    Args:
        gpus: GPUs that are asked for; None for the default.
        cpus_per_gpu: CPUs of a machine for each of its GPUs; None if no machine has GPUs.
    """
    if gpus is None:
        gpus = GPUS_PER_TASK if cpus_per_gpu is not None else 0
    return gpus, max(1, min(MAX_CPUS, int(gpus * cpus_per_gpu))) if gpus and cpus_per_gpu else 1


def _compute_shard(run: str, tower: str, image_size: int | None, index: int) -> None:
    device, threads = assigned_device("features"), assigned_cpus()
    with device_failures("features"):
        _open_cache(run, tower, image_size, device, threads).compute(index)


@functools.lru_cache(maxsize=1)
def _open_cache(run: str, tower: str, image_size: int | None, device: str = "cpu", threads: int = 1) -> "FeatureCache":
    """The features of the run's dataset, with the tower loaded. A process loads it once for all its shards.

    Args:
        run: The run's folder.
        tower: Folder or hub id of the image tower.
        image_size: Side of the square images in pixels; None takes the tower's.
        device: Where the tower computes.
        threads: Number of threads that decode images.
    """
    from lotlip_data.training.data.dataset import open_dataset
    from lotlip_data.training.data.feature_cache import FeatureCache
    from lotlip_data.training.models.lotlip import load_image_side

    dataset = open_dataset(run)  # before the hub is asked for the tower
    image_tower, transform = load_image_side(tower, image_size)
    image_tower.to(device)
    return FeatureCache(dataset, image_tower, transform, threads=threads)


def features(
    manifest: Manifest, run: Run, tower: str | None = None, image_size: int | None = None, gpus: float | None = None
) -> Outcome:
    """Compute the features of the dataset's images.

    Args:
        manifest: The manifest of the run.
        run: The run with the dataset.
        tower: Folder or hub id of the image tower. Default: the towers of the manifest's trainings that read features,
            or the paper's tower if there is none.
        image_size: Side of the square images in pixels; None takes the tower's. Towers of the manifest's trainings keep
            the size of their training.
        gpus: GPUs that Ray reserves per task. Default: as in `compute_features`.
    """
    require([check_gpus("features", gpus or 0)])
    configs = [training_config(entry) for entry in manifest.train]
    configured = {(config.image_side, config.image_size) for config in configs if config.images == "features"}
    total = Outcome(did_something=False)
    for name, size in [(tower, image_size)] if tower else sorted(configured, key=str) or [(PAPER_TOWER, image_size)]:
        summary = compute_features(run, name, size, gpus)
        total.did_something |= summary.computed > 0
        total.failed += summary.failed
        total.figures[name] = {"there": summary.existing, "computed": summary.computed, "failed": len(summary.failed)}
    return total
