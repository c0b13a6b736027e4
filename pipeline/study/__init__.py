"""The reproduction study: the paper's tables and figures on synthetic scenes, at small scale."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.study.main import rebuild_page, run_study

__all__ = ["rebuild_page", "run_study"]
__getattr__ = lazy_exports(
    __name__,
    {
        "main": ["rebuild_page", "run_study"],
    },
)
