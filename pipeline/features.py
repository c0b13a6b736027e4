"""The locked tower's features of a run's images, computed before the training: a Ray task a shard."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline.tasks import brief, run_tasks

if TYPE_CHECKING:
    from lotlip_data.training.features import FeatureCache

Say = Callable[[str], None]


@dataclass
class FeaturesSummary:
    """How many shards had features before and have them now, and a line for each that could not be computed."""

    there: int
    computed: int = 0
    failed: list[str] = field(default_factory=list)


def compute_features(run: Run, tower: str, image_size: int | None, gpus: float, say: Say) -> FeaturesSummary:
    """Compute what is missing of the features that trainings with this image tower read.

    Raises UserError where there is no dataset or no such tower.
    """
    cache = _cache(run.url, tower, image_size)
    missing = cache.missing()
    summary = FeaturesSummary(cache.shards - len(missing))
    say(f"image features: {len(missing)} of {cache.shards} shards to compute, in {cache.folder}")
    task = functools.partial(_compute, run.url, tower, image_size)
    for index, answer in run_tasks(task, missing, num_gpus=gpus):
        if isinstance(answer, Exception):
            summary.failed.append(f"shard {index}: {brief(answer)}")
            say(summary.failed[-1])
            continue
        summary.computed += 1
        if summary.computed % max(1, len(missing) // 20) == 0:
            say(f"{summary.computed} of {len(missing)} shards")
    return summary


def _compute(run: str, tower: str, image_size: int | None, index: int) -> None:
    _cache(run, tower, image_size).compute(index)


@functools.lru_cache(maxsize=1)
def _cache(run: str, tower: str, image_size: int | None) -> "FeatureCache":
    """Read once in a process, however many shards it gets."""
    import torch

    from lotlip_data.manifests.checkpoints import resolve
    from lotlip_data.training.data import open_dataset
    from lotlip_data.training.features import FeatureCache
    from lotlip_data.training.images import transform_of
    from lotlip_data.training.tower_files import load_image_tower

    image = load_image_tower(resolve(tower), image_size=image_size)
    if torch.cuda.is_available():
        image.cuda()
    return FeatureCache(open_dataset(run), image, transform_of(resolve(tower), image.vit.config.image_size))
