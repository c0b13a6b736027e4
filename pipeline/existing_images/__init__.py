"""Images that exist: WebDataset tars, tables with image bytes and folders, found, cut into containers, and read."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.existing_images.containers import containers_of
    from lotlip_data.pipeline.existing_images.reader import digest_of, iter_images, iter_rows, read_image
    from lotlip_data.pipeline.existing_images.rows import ExistingRow, RejectedRow, StoredImage

__all__ = [
    "ExistingRow",
    "RejectedRow",
    "StoredImage",
    "containers_of",
    "digest_of",
    "iter_images",
    "iter_rows",
    "read_image",
]
__getattr__ = lazy_exports(
    __name__,
    {
        "containers": ["containers_of"],
        "reader": ["digest_of", "iter_images", "iter_rows", "read_image"],
        "rows": ["ExistingRow", "RejectedRow", "StoredImage"],
    },
)
