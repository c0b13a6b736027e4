"""Zero-shot evaluation: models, metrics, published tasks, and tables."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.training.evaluation.compare import compare
    from lotlip_data.training.evaluation.evaluate import evaluate_zero_shot, read_results
    from lotlip_data.training.evaluation.models import load_embedder
    from lotlip_data.training.evaluation.report import tables
    from lotlip_data.training.evaluation.results import group_by_model

__all__ = ["compare", "evaluate_zero_shot", "group_by_model", "load_embedder", "read_results", "tables"]
__getattr__ = lazy_exports(
    __name__,
    {
        "compare": ["compare"],
        "evaluate": ["evaluate_zero_shot", "read_results"],
        "models": ["load_embedder"],
        "report": ["tables"],
        "results": ["group_by_model"],
    },
)
