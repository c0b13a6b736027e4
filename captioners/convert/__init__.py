"""Conversion of ShareGPT4V's published checkpoint into the Hugging Face LLaVA layout."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.captioners.convert.sharegpt4v import convert

__all__ = ["convert"]
__getattr__ = lazy_exports(
    __name__,
    {
        "sharegpt4v": ["convert"],
    },
)
