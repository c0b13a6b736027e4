"""The locked tower's features of a run's images, computed before the training: a Ray task a shard."""

import functools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import SHOWN_BY_BAR, progress_bar
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.training import PAPER_TOWER
from lotlip_data.pipeline.core.outcome import Outcome, one_line
from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks
from lotlip_data.pipeline.model_stages.train import training_config

if TYPE_CHECKING:
    from lotlip_data.training.data.feature_cache import FeatureCache

logger = logging.getLogger(__name__)


@dataclass
class FeaturesSummary:
    """How many shards had features before and have them now, and a line for each that could not be computed."""

    there: int
    computed: int = 0
    failed: list[str] = field(default_factory=list)


def compute_features(run: Run, tower: str, image_size: int | None, gpus: float) -> FeaturesSummary:
    """Compute what is missing of the features that trainings with this image tower read.

    Raises UserError where there is no dataset or no such tower.
    """
    cache = _cache(run.url, tower, image_size)
    missing = cache.missing()
    summary = FeaturesSummary(cache.shards - len(missing))
    logger.info(f"image features: {len(missing)} of {cache.shards} shards to compute, in {cache.folder}")
    task = functools.partial(_compute, run.url, tower, image_size)
    with progress_bar("features", len(missing), "shard") as bar:
        for index, answer in run_ray_tasks(task, missing, num_gpus=gpus):
            bar.update()
            if isinstance(answer, Exception):
                summary.failed.append(f"shard {index}: {one_line(answer)}")
                logger.warning(summary.failed[-1])
                continue
            summary.computed += 1
            if summary.computed % max(1, len(missing) // 20) == 0:
                logger.info(f"{summary.computed} of {len(missing)} shards", extra=SHOWN_BY_BAR)
    return summary


def _compute(run: str, tower: str, image_size: int | None, index: int) -> None:
    _cache(run, tower, image_size).compute(index)


@functools.lru_cache(maxsize=1)
def _cache(run: str, tower: str, image_size: int | None) -> "FeatureCache":
    """Read once in a process, however many shards it gets."""
    import torch

    from lotlip_data.manifests.checkpoints.resolve import resolve
    from lotlip_data.training.data.dataset import open_dataset
    from lotlip_data.training.data.feature_cache import FeatureCache
    from lotlip_data.training.data.image_transforms import load_transform
    from lotlip_data.training.models.pretrained import load_image_tower

    image = load_image_tower(resolve(tower), image_size=image_size)
    if torch.cuda.is_available():
        image.cuda()
    return FeatureCache(open_dataset(run), image, load_transform(resolve(tower), image.vit.config.image_size))


def features(
    manifest: Manifest, run: Run, tower: str | None = None, image_size: int | None = None, gpus: float = 0
) -> Outcome:
    """Compute the features of the dataset's images by an image tower, or by those of the manifest's trainings."""
    configs = [training_config(entry) for entry in manifest.train]
    of_manifest = {(one.image_tower, one.image_size) for one in configs if one.images == "features"}
    total = Outcome(did_something=False)
    for name, size in [(tower, image_size)] if tower else sorted(of_manifest, key=str) or [(PAPER_TOWER, image_size)]:
        summary = compute_features(run, name, size, gpus)
        total.did_something |= summary.computed > 0
        total.failed += summary.failed
        total.figures[name] = {"there": summary.there, "computed": summary.computed, "failed": len(summary.failed)}
    return total
