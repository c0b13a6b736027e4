"""Inference engines: transformers, vLLM, and vLLM with prompt embeddings."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.captioners.engines.transformers_engine import TransformersEngine
    from lotlip_data.captioners.engines.vllm_engine import VllmEngine
    from lotlip_data.captioners.engines.vllm_prompt_embeds import VllmEmbedsEngine

__all__ = ["TransformersEngine", "VllmEmbedsEngine", "VllmEngine"]
__getattr__ = lazy_exports(
    __name__,
    {
        "transformers_engine": ["TransformersEngine"],
        "vllm_engine": ["VllmEngine"],
        "vllm_prompt_embeds": ["VllmEmbedsEngine"],
    },
)
