"""Image download: img2dataset on Ray behind an HTTP client that blocks private addresses (SSRF)."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.downloading.stage import download, read_summary

__all__ = ["download", "read_summary"]
__getattr__ = lazy_exports(
    __name__,
    {
        "stage": ["download", "read_summary"],
    },
)
