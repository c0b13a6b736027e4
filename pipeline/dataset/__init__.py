"""The dataset: join images and captions, write shards, describe and verify them."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.dataset.stage import shard
    from lotlip_data.pipeline.dataset.stats import dataset_stats

__all__ = ["dataset_stats", "shard"]
__getattr__ = lazy_exports(
    __name__,
    {
        "stage": ["shard"],
        "stats": ["dataset_stats"],
    },
)
