"""ShareGPT4V: LLaVA-1.5's architecture with a tuned vision tower, converted to the Hugging Face LLaVA layout.

LLaVA-1.5 in the Hugging Face layout: CLIP tower, two-layer projector, Llama; vLLM knows it.
"""

from typing import Any

from lotlip_data.captioners.models.base import Captioner


class ShareGPT4V(Captioner):
    """`Lin-Chen/ShareGPT4V-7B`, converted; the template is the one that it was trained with."""

    template = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: <image>\n{prompt} ASSISTANT:"
    )
    model_class = "LlavaForConditionalGeneration"

    def check(self, source: str, options: dict[str, Any]) -> None:
        from transformers import PretrainedConfig

        layout, _ = PretrainedConfig.get_config_dict(source, **options)
        if layout.get("model_type") == "share4v":
            raise ValueError(
                f"{source} has ShareGPT4V's published layout, which neither transformers nor vLLM reads; run "
                f"`lotlip-data convert sharegpt4v {source} DST` once and set model to DST"
            )


class Llava(Captioner):
    """`llava-hf/llava-1.5-7b-hf` and compatible checkpoints; the template is the one on its model card."""

    template = "USER: <image>\n{prompt} ASSISTANT:"
    model_class = "LlavaForConditionalGeneration"
