"""The plan of a manifest (`lotlip-data plan`): lists, throughput, cost and storage."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.planning.cost import plan_cost
    from lotlip_data.pipeline.planning.hardware import Hardware
    from lotlip_data.pipeline.planning.lists import plan_lists

__all__ = ["Hardware", "plan_cost", "plan_lists"]
__getattr__ = lazy_exports(
    __name__,
    {
        "cost": ["plan_cost"],
        "hardware": ["Hardware"],
        "lists": ["plan_lists"],
    },
)
