"""Training data: samples, texts, image features, pixels, and batches that are prepared ahead."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.training.data.dataset import Batches, open_dataset
    from lotlip_data.training.data.feature_cache import FeatureCache

__all__ = ["Batches", "FeatureCache", "open_dataset"]
__getattr__ = lazy_exports(
    __name__,
    {
        "dataset": ["Batches", "open_dataset"],
        "feature_cache": ["FeatureCache"],
    },
)
