"""InstructBLIP: ViT-g, a Q-Former that also reads the instruction, projection, Vicuna; vLLM knows only the last."""

from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, Engine, EngineOptions
from lotlip_data.captioners.models.base import Captioner

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

    def load_vllm(self, config: CaptionerConfig, resources: EngineOptions) -> Engine:
        """The image half in transformers, the language model in vLLM, prompt embeddings from one to the other.

        Raises ValueError for a quantization that must be in the checkpoint's files: InstructBLIP's have none.
        """
        if config.quantization and any(method in config.quantization for method in IN_FILES):
            raise ValueError(
                f"captioner {config.name!r}: quantization={config.quantization!r}: InstructBLIP's checkpoint is not "
                "quantised; use one that vLLM makes on loading, such as fp8, or leave it out"
            )
        from lotlip_data.captioners.engines.vllm_prompt_embeds import VllmEmbedsEngine

        return VllmEmbedsEngine(self, config, resources)
