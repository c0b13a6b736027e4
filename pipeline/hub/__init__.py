"""Publishes a dataset on the Hugging Face Hub: only what changed, and visible in one step."""

from lotlip_data.pipeline.hub.progress_card import Progress, publish_progress
from lotlip_data.pipeline.hub.publish import Publication, publish

__all__ = ["Progress", "Publication", "publish", "publish_progress"]
