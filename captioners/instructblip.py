"""InstructBLIP: ViT-g, a Q-Former that also reads the instruction, projection, Vicuna; vLLM knows only the last."""

from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, Engine, Resources
from lotlip_data.captioners.captioner import Captioner


class InstructBlip(Captioner):
    """`Salesforce/instructblip-vicuna-7b` and compatible; the processor puts the image's tokens before the prompt."""

    template = "{prompt}"
    model_class = "InstructBlipForConditionalGeneration"
    processor_class = "InstructBlipProcessor"  # the published checkpoint names the one for videos

    def load_vllm(self, config: CaptionerConfig, resources: Resources) -> Engine:
        """The image half in transformers, the language model in vLLM, prompt embeddings from one to the other."""
        from lotlip_data.captioners.vllm_embeds_engine import VllmEmbedsEngine

        return VllmEmbedsEngine(self, config, resources)


def prompt_embeddings(model: Any, pixels_BCHW: Any, prompt: dict[str, Any]) -> Any:
    """(B, L, D): what InstructBLIP's language model reads for B images under one prompt of (1, …) tensors.

    model: InstructBlipForConditionalGeneration, of which the language model's layers are not used. The computation is
    that of its `generate`: the prompt's token embeddings, with the projected query tokens in the image's places.
    """
    count = len(pixels_BCHW)
    ids_BL = prompt["input_ids"].expand(count, -1)
    image = model.get_image_features(
        pixels_BCHW,
        qformer_input_ids=prompt["qformer_input_ids"].expand(count, -1),
        qformer_attention_mask=prompt["qformer_attention_mask"].expand(count, -1),
        return_dict=True,
    ).pooler_output
    embeds_BLD = model.get_input_embeddings()(ids_BL)
    places = (ids_BL == model.config.image_token_id).unsqueeze(-1)
    return embeds_BLD.masked_scatter(places, image.to(embeds_BLD.dtype))
