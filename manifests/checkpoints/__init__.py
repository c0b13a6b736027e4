"""Checkpoints in model folders: find, read, write and compare weights, and convert between layouts."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.manifests.checkpoints.weights import read_weights, write_weights

__all__ = ["read_weights", "write_weights"]
__getattr__ = lazy_exports(__name__, {"weights": ["read_weights", "write_weights"]})
