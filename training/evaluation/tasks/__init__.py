"""The published evaluation sets, one module per set. `WHERE` of each names the files that it needs."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.training.evaluation.tasks.reading import read_task
    from lotlip_data.training.evaluation.tasks.registry import TASKS

__all__ = ["TASKS", "read_task"]
__getattr__ = lazy_exports(
    __name__,
    {
        "reading": ["read_task"],
        "registry": ["TASKS"],
    },
)
