"""The progress of a run (`lotlip-data status`) and its HTML report (`lotlip-data report`)."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.reporting.html import render_html
    from lotlip_data.pipeline.reporting.report import build_report
    from lotlip_data.pipeline.reporting.status import RunStatus, get_status

__all__ = ["RunStatus", "build_report", "get_status", "render_html"]
__getattr__ = lazy_exports(
    __name__,
    {
        "html": ["render_html"],
        "report": ["build_report"],
        "status": ["RunStatus", "get_status"],
    },
)
