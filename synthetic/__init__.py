"""Synthetic scenes: rendered images with exact descriptions, for the demo, the tests and the study."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.synthetic.http_server import SceneServer
    from lotlip_data.synthetic.scenes import Scene, render, sample_scene

__all__ = ["Scene", "SceneServer", "render", "sample_scene"]
__getattr__ = lazy_exports(
    __name__,
    {
        "http_server": ["SceneServer"],
        "scenes": ["Scene", "render", "sample_scene"],
    },
)
