"""Captioning on pools of Ray actors, and the import of existing captions."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.recaptioning.config import resolve_captioners
    from lotlip_data.pipeline.recaptioning.stage import recaption

__all__ = ["recaption", "resolve_captioners"]
__getattr__ = lazy_exports(
    __name__,
    {
        "config": ["resolve_captioners"],
        "stage": ["recaption"],
    },
)
