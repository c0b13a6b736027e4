"""A captioner whose language model alone is in vLLM: transformers makes the prompt's embeddings, in batches."""

from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig

from lotlip_data.captioners.base import CaptionerConfig, Resources
from lotlip_data.captioners.batcher import Batcher
from lotlip_data.captioners.captioner import Captioner
from lotlip_data.captioners.inputs import Inputs
from lotlip_data.captioners.instructblip import prompt_embeddings
from lotlip_data.captioners.language_model import export_language_model
from lotlip_data.captioners.transformers_engine import load_model
from lotlip_data.captioners.vllm_engine import VllmEngine, embeds_request, engine_args


class VllmEmbedsEngine(VllmEngine):
    """InstructBLIP at vLLM's speed, with the captions that transformers' `generate` gives."""

    def __init__(self, captioner: Captioner, config: CaptionerConfig, resources: Resources):
        inputs = Inputs(captioner, config)
        structure = AutoConfig.from_pretrained(inputs.source, **inputs.options)
        structure.text_config.num_hidden_layers = 0  # of the language model, only the token embeddings are needed here
        self._vision: Any = load_model(captioner.model_class, inputs, config, structure)
        self._prompt = {name: ids.to(self._vision.device) for name, ids in inputs.prompt.items()}
        arguments = engine_args(
            config,
            resources,
            inputs,
            model=str(export_language_model(inputs.source, inputs.options, resources.cache_dir)),
            revision=None,
            skip_tokenizer_init=True,
            enable_prompt_embeds=True,
            limit_mm_per_prompt=None,
            gpu_memory_utilization=resources.gpu_memory_utilization - self._gpu_share(inputs, resources.batch_size),
        )
        super().__init__(config, inputs, arguments)
        self._embed = Batcher(self._embeddings, resources.batch_size)

    def close(self) -> None:
        super().close()
        self._embed.close()
        self._vision = None

    def _render(self, config: CaptionerConfig) -> None:
        """Nothing: embeddings are the whole of what vLLM is asked."""

    async def _request(self, pixels: torch.Tensor) -> Any:
        return embeds_request(await self._embed(pixels))

    @torch.inference_mode()
    def _embeddings(self, pixels: list[torch.Tensor]) -> list[torch.Tensor]:
        batch = torch.cat(pixels).to(self._vision.device, self._vision.dtype)
        return list(prompt_embeddings(self._vision, batch, self._prompt).cpu())

    def _gpu_share(self, inputs: Inputs, batch_size: int) -> float:
        """The share of the GPU that this half takes, measured on one full batch: vLLM must not count on it."""
        if not torch.cuda.is_available():
            return 0.0
        self._embeddings([inputs.pixels(Image.new("RGB", (64, 64)))] * batch_size)
        return torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
