"""Publishes a dataset on the Hugging Face Hub: only what differs, and visible in one step."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.hub.progress_card import Progress, publish_progress
    from lotlip_data.pipeline.hub.publication import Publication, publish

__all__ = ["Progress", "Publication", "publish", "publish_progress"]
__getattr__ = lazy_exports(
    __name__, {"progress_card": ["Progress", "publish_progress"], "publication": ["Publication", "publish"]}
)
