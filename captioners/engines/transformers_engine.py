"""Captions with transformers: micro-batches of `generate` on a worker thread. Runs anywhere that torch runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, EngineDead, EngineOptions, ModelSpec
from lotlip_data.captioners.engines.batcher import Batcher
from lotlip_data.captioners.engines.preprocessing import Inputs


class TransformersEngine:
    """Greedy float32 captions do not depend on which images share a batch; sampled ones do."""

    def __init__(self, captioner: ModelSpec, config: CaptionerConfig, resources: EngineOptions):
        if config.quantization or config.tensor_parallel_size > 1:
            raise ValueError(
                f"captioner {config.name!r}: quantization and tensor_parallel_size need engine='vllm'; leave them out"
            )
        self._inputs = Inputs(captioner, config)
        self._model: Any = load_model(captioner.model_class, self._inputs, config)
        self._model.generation_config = _generation_config(config, self._inputs)
        if hasattr(self._model, "language_model"):  # InstructBLIP's generate delegates to its language model's
            self._model.language_model.generation_config = self._model.generation_config
        torch.manual_seed(config.seed)
        self._batcher = Batcher(self._generate, resources.batch_size)
        self.window = 2 * resources.batch_size  # so that the next batch is ready when one ends
        self.burst = 1

    def prepare(self, image: Image.Image) -> torch.Tensor:
        return self._inputs.pixels(image)

    async def caption(self, prepared: torch.Tensor) -> Caption:
        return await self._batcher(prepared)

    def close(self) -> None:
        self._batcher.close()
        self._model = None

    @torch.inference_mode()
    def _generate(self, pixels: list[torch.Tensor]) -> list[Caption]:
        """Captions of n images, each (1, 3, H, W). They share one prompt, so nothing is padded."""
        device, dtype = self._model.device, self._model.dtype
        prompt = {name: ids.expand(len(pixels), -1).to(device) for name, ids in self._inputs.prompt.items()}
        try:
            tokens = self._model.generate(pixel_values=torch.cat(pixels).to(device, dtype), **prompt)
        except torch.AcceleratorError as error:  # after it, every call to the GPU from this process fails
            raise EngineDead(str(error)) from error
        except torch.OutOfMemoryError as error:
            if len(pixels) > 1:
                raise  # the batcher goes on one by one
            raise EngineDead(f"not even one image fits in memory: {error}") from error
        return [self._inputs.caption(row) for row in tokens[:, self._inputs.prompt_length :].tolist()]


def load_model(model_class: str, inputs: Inputs, config: CaptionerConfig, structure: Any = None) -> Any:
    """The checkpoint in evaluation mode, on the GPU where there is one. structure: instead of its own config.json.

    Raises ValueError for weights that the checkpoint lacks: transformers would draw them at random and go on.
    """
    gpu = torch.cuda.is_available()
    dtype = ("auto" if gpu else "float32") if config.dtype == "auto" else config.dtype
    cls = getattr(transformers, model_class)
    with _quiet():
        model, loaded = cls.from_pretrained(
            inputs.source, config=structure, dtype=dtype, output_loading_info=True, **inputs.options
        )
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"{inputs.source}: lacks {len(missing)} weights of {model_class}, such as {missing[0]}")
    return model.eval().to("cuda" if gpu else "cpu")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its table of weights that were left out on purpose."""
    bars, level = transformers.logging.is_progress_bar_enabled(), transformers.logging.get_verbosity()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def _generation_config(config: CaptionerConfig, inputs: Inputs) -> transformers.GenerationConfig:
    """Ours alone: a checkpoint's own generation_config (Vicuna's samples) must not change what the settings say."""
    sampling = {"temperature": config.temperature, "top_p": config.top_p, "top_k": 0} if config.temperature else {}
    return transformers.GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        do_sample=config.temperature > 0,
        eos_token_id=sorted(inputs.stop_ids),
        pad_token_id=min(inputs.stop_ids),  # finished rows are cut at their end token, so what follows does not matter
        **sampling,
    )
