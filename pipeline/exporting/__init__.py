"""Captions beside the images: the texts of a run as plain files of common formats, without the dataset of `shard`."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.exporting.formats import FORMATS
    from lotlip_data.pipeline.exporting.stage import ExportSummary, export

__all__ = ["FORMATS", "ExportSummary", "export"]
__getattr__ = lazy_exports(
    __name__,
    {
        "formats": ["FORMATS"],
        "stage": ["ExportSummary", "export"],
    },
)
