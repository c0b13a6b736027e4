"""One class per kind of captioner: its prompt format, its inputs, and the engines that run it."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.captioners.models.base import Captioner
    from lotlip_data.captioners.models.instructblip import InstructBlip
    from lotlip_data.captioners.models.llava import Llava, ShareGPT4V
    from lotlip_data.captioners.models.openai_endpoint import OpenAIEndpoint

__all__ = ["Captioner", "InstructBlip", "Llava", "OpenAIEndpoint", "ShareGPT4V"]
__getattr__ = lazy_exports(
    __name__,
    {
        "base": ["Captioner"],
        "instructblip": ["InstructBlip"],
        "llava": ["Llava", "ShareGPT4V"],
        "openai_endpoint": ["OpenAIEndpoint"],
    },
)
