"""What all other packages share: manifests, the layout of a run, schemas, storage, and errors."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.manifests.errors import UserError
    from lotlip_data.manifests.formats.dataset_index import read_index
    from lotlip_data.manifests.manifest import Manifest
    from lotlip_data.manifests.run_layout import Run

__all__ = ["Manifest", "Run", "UserError", "read_index"]
__getattr__ = lazy_exports(
    __name__,
    {
        "formats.dataset_index": ["read_index"],
        "errors": ["UserError"],
        "manifest": ["Manifest"],
        "run_layout": ["Run"],
    },
)
