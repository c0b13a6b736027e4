"""Filters, deduplication and decontamination of a dataset."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.curation.exclusions import find_exclusions
    from lotlip_data.pipeline.curation.filters import Filters

__all__ = ["Filters", "find_exclusions"]
__getattr__ = lazy_exports(
    __name__,
    {
        "exclusions": ["find_exclusions"],
        "filters": ["Filters"],
    },
)
