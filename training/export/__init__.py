"""Writes trained models as folders that other libraries load."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.training.export.export import export_model

__all__ = ["export_model"]
__getattr__ = lazy_exports(__name__, {"export": ["export_model"]})
