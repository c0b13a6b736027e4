"""The reproduction study: the paper's tables and figures on synthetic scenes, at small scale."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.study.main import study
    from lotlip_data.pipeline.study.report import write_page

__all__ = ["study", "write_page"]
__getattr__ = lazy_exports(
    __name__,
    {
        "main": ["study"],
        "report": ["write_page"],
    },
)
