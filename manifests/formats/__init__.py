"""Formats of files in a run: table columns, dataset.json, image tars and stored features."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.manifests.formats.dataset_index import read_index

__all__ = ["read_index"]
__getattr__ = lazy_exports(__name__, {"dataset_index": ["read_index"]})
