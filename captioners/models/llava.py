"""LLaVA-1.5 and ShareGPT4V, in the Hugging Face LLaVA layout: CLIP tower, two-layer projector, Llama.

ShareGPT4V has LLaVA-1.5's architecture with a vision tower of its own. vLLM runs both as a whole.
"""

import hashlib
from pathlib import Path
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions
from lotlip_data.captioners.models.base import Captioner
from lotlip_data.manifests.checkpoints.fetched import commit_of
from lotlip_data.manifests.checkpoints.hub import read_config


class Llava(Captioner):
    """`llava-hf/llava-1.5-7b-hf` and compatible checkpoints.

    The template is the checkpoint's chat template, or that of LLaVA-1.5's model card, which is the same text.
    """

    template = "USER: <image>\n{prompt} ASSISTANT:"
    model_class = "LlavaForConditionalGeneration"
    uses_chat_template = True
    model_types = ("llava",)
    layout_parts = ("vision_config", "text_config")


class ShareGPT4V(Captioner):
    """`Lin-Chen/ShareGPT4V-7B`, converted, with the template that it was trained with."""

    template = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: <image>\n{prompt} ASSISTANT:"
    )
    model_class = "LlavaForConditionalGeneration"
    model_types = ("llava",)
    layout_parts = ("vision_config", "text_config")

    def check(self, source: str, load_options: dict[str, Any]) -> None:
        layout = read_config(source, load_options.get("revision"))
        if layout.get("model_type") == "share4v":
            raise ValueError(
                f"{source} has ShareGPT4V's published layout, which neither transformers nor vLLM reads; run "
                f"`lotlip-data convert sharegpt4v {source} DST` once and set model to DST"
            )
        super().check(source, load_options)

    def prepare_files(self, config: CaptionerConfig, folder: Path, engine: str, options: EngineOptions) -> list[str]:
        """Convert the published layout, into a folder beside the exported language models."""
        if read_config(str(folder)).get("model_type") != "share4v":
            return []
        from lotlip_data.captioners.convert.sharegpt4v import convert

        version = commit_of(folder) or hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
        name = f"{Path(config.model).name}-{version[:12]}"
        target = Path(options.cache_dir).expanduser() / "converted" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        convert(str(folder), str(target))
        return [f"converted; set `model: {target}` of this captioner"]
