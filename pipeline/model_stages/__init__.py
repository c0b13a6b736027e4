"""The stages that use `training`: compute features, train, and evaluate."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.model_stages.evaluate import evaluate_model, evaluate_tasks
    from lotlip_data.pipeline.model_stages.features import compute_features

__all__ = ["compute_features", "evaluate_model", "evaluate_tasks"]
__getattr__ = lazy_exports(
    __name__,
    {
        "evaluate": ["evaluate_model", "evaluate_tasks"],
        "features": ["compute_features"],
    },
)
