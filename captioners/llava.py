"""LLaVA-1.5 in the Hugging Face layout: CLIP tower, two-layer projector, Llama; vLLM knows it."""

from lotlip_data.captioners.captioner import Captioner


class Llava(Captioner):
    """`llava-hf/llava-1.5-7b-hf` and compatible checkpoints; the template is the one on its model card."""

    template = "USER: <image>\n{prompt} ASSISTANT:"
    model_class = "LlavaForConditionalGeneration"
