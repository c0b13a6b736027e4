"""The viewer (`lotlip-data view`): a local web page with a run's samples, failures and trained models."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.viewer.app import create_app
    from lotlip_data.pipeline.viewer.server import serve

__all__ = ["create_app", "serve"]
__getattr__ = lazy_exports(
    __name__,
    {
        "app": ["create_app"],
        "server": ["serve"],
    },
)
