"""Finds the images that are most similar to a text, among many, and keeps their features for the next search."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.training.search.search import SearchResult, search_images

__all__ = ["SearchResult", "search_images"]
__getattr__ = lazy_exports(__name__, {"search": ["SearchResult", "search_images"]})
