"""What every stage uses: Ray tasks, the ledger of committed work, scratch folders, and results."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.core.outcome import Inspection, Outcome
    from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks

__all__ = ["Inspection", "Outcome", "run_ray_tasks"]
__getattr__ = lazy_exports(
    __name__,
    {
        "outcome": ["Inspection", "Outcome"],
        "ray_tasks": ["run_ray_tasks"],
    },
)
