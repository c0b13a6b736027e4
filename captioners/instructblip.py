"""InstructBLIP: ViT-g, a Q-Former that also reads the instruction, projection, Vicuna; vLLM knows only the last."""

from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, Engine, Resources
from lotlip_data.captioners.captioner import Captioner

IN_FILES = ("awq", "gptq", "compressed-tensors")
"""In the name of each quantization that vLLM finds in a checkpoint rather than makes on loading."""


class InstructBlip(Captioner):
    """`Salesforce/instructblip-vicuna-7b` and compatible; the processor puts the image's tokens before the prompt."""

    template = "{prompt}"
    model_class = "InstructBlipForConditionalGeneration"
    processor_class = "InstructBlipProcessor"  # the published checkpoint names the one for videos

    def check(self, source: str, options: dict[str, Any]) -> None:
        from transformers import PretrainedConfig

        layout, _ = PretrainedConfig.get_config_dict(source, **options)
        if "quantization_config" in layout or "quantization_config" in layout.get("text_config", {}):
            raise ValueError(
                f"{source}: is quantised, and its language model cannot be taken out for vLLM; use the checkpoint as "
                "published, with quantization: fp8 if vLLM shall quantise it on loading"
            )

    def load_vllm(self, config: CaptionerConfig, resources: Resources) -> Engine:
        """The image half in transformers, the language model in vLLM, prompt embeddings from one to the other.

        Raises ValueError for a quantization that must be in the checkpoint's files: InstructBLIP's have none.
        """
        if config.quantization and any(method in config.quantization for method in IN_FILES):
            raise ValueError(
                f"captioner {config.name!r}: quantization={config.quantization!r}: InstructBLIP's checkpoint is not "
                "quantised; use one that vLLM makes on loading, such as fp8, or leave it out"
            )
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
