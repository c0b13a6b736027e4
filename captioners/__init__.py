"""Captioners: models that write long texts about images, and the engines that run them.

A captioner of another package implements `Captioner` for its kind of model, in terms of these names, and registers the
class as an entry point in the group `lotlip_data.captioners`.
"""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.captioners.base import (
        Caption,
        CaptionerConfig,
        CaptionError,
        Engine,
        EngineDead,
        EngineOptions,
        EngineUnreachable,
        ModelSpec,
        MultiTextEngine,
        TextRequest,
    )
    from lotlip_data.captioners.models.base import Captioner
    from lotlip_data.captioners.registry import load_engine

__all__ = [
    "Caption",
    "CaptionError",
    "Captioner",
    "CaptionerConfig",
    "Engine",
    "EngineDead",
    "EngineOptions",
    "EngineUnreachable",
    "ModelSpec",
    "MultiTextEngine",
    "TextRequest",
    "load_engine",
]
__getattr__ = lazy_exports(
    __name__,
    {
        "base": [
            *("Caption", "CaptionError", "CaptionerConfig", "Engine", "EngineDead", "EngineOptions"),
            *("EngineUnreachable", "ModelSpec", "MultiTextEngine", "TextRequest"),
        ],
        "models.base": ["Captioner"],
        "registry": ["load_engine"],
    },
)
