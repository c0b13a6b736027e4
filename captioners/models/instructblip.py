"""InstructBLIP: ViT-g, a Q-Former that also reads the instruction, projection, Vicuna. vLLM runs only the last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, Engine, EngineOptions
from lotlip_data.captioners.models.base import Captioner, default_engine, require_vllm
from lotlip_data.manifests.checkpoints.hub import find_model

STORED_QUANTIZATIONS = ("awq", "gptq", "compressed-tensors")
"""Parts of the names of the quantizations that vLLM reads from a checkpoint instead of computing on load."""


class InstructBlip(Captioner):
    """`Salesforce/instructblip-vicuna-7b` and compatible; the processor puts the image's tokens before the prompt."""

    template = "{prompt}"
    model_class = "InstructBlipForConditionalGeneration"
    model_types = ("instructblip",)
    layout_parts = ("vision_config", "qformer_config", "text_config")
    processor_class = "InstructBlipProcessor"  # the published checkpoint names the processor for videos

    def check_layout(self, source: str, layout: Mapping[str, Any]) -> None:
        if "quantization_config" in layout or "quantization_config" in layout.get("text_config", {}):
            raise ValueError(
                f"{source}: is quantised, and its language model cannot be exported for vLLM; use the checkpoint as "
                "published, with quantization: fp8 if vLLM should quantise it on load"
            )

    def choose_engine(self, config: CaptionerConfig, engine: str) -> str:
        """As `Captioner.choose_engine`; `auto` is transformers for a language model with an encoder (Flan-T5)."""
        if engine == "auto" and self._has_encoder(config):
            return "transformers"
        return super().choose_engine(config, engine)

    def load_vllm(self, config: CaptionerConfig, options: EngineOptions) -> Engine:
        """Load the image half into transformers and the language model into vLLM, linked by prompt embeddings.

        Raises:
            ValueError: The quantization must be stored in the checkpoint, and InstructBLIP's has none. Or the language
                model has an encoder, such as Flan-T5.
        """
        if self._has_encoder(config):
            raise ValueError(
                f"captioner {config.name!r}: {config.model}: its language model has an encoder, which vLLM does not "
                "run; use engine='transformers'"
            )
        if config.quantization and any(method in config.quantization for method in STORED_QUANTIZATIONS):
            raise ValueError(
                f"captioner {config.name!r}: quantization={config.quantization!r}: InstructBLIP's checkpoint is not "
                "quantised; use one that vLLM computes on load, such as fp8, or leave it out"
            )
        from lotlip_data.captioners.engines.vllm_prompt_embeds import VllmEmbedsEngine

        return VllmEmbedsEngine(self, config, options)

    def prepare_files(self, config: CaptionerConfig, folder: Path, engine: str, options: EngineOptions) -> list[str]:
        """Export the language model, if vLLM will run it."""
        if engine not in ("auto", "vllm") or (engine == "auto" and default_engine() != "vllm"):
            return []
        if self._has_encoder(config):
            return []
        require_vllm()
        from transformers import AutoConfig

        from lotlip_data.captioners.engines.vllm_prompt_embeds import export_dtype, export_language_model

        dtype = export_dtype(config, AutoConfig.from_pretrained(folder, local_files_only=True))
        load_options = {"revision": None, "local_files_only": True}
        exported = export_language_model(str(folder), load_options, options.cache_dir, dtype)
        return [f"its language model is exported for vLLM: {exported}"]

    @staticmethod
    def _has_encoder(config: CaptionerConfig) -> bool:
        from transformers import AutoConfig

        source = str(find_model(config.model, config.revision) or config.model)
        layout = AutoConfig.from_pretrained(source, revision=config.revision)
        return bool(layout.get_text_config().is_encoder_decoder)
