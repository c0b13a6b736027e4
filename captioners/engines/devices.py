"""The GPU that an engine of this process computes on, and what the engine does on it by default."""

from dataclasses import replace
from typing import Any, Protocol

import torch

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions
from lotlip_data.captioners.sizing import (
    CAPTION_TOKENS,
    EngineDefaults,
    Gpu,
    ModelSizes,
    Precision,
    Share,
    engine_defaults,
    language_dtype,
)


class SizedInputs(Protocol):
    """What the defaults of an engine depend on of the inputs of its model."""

    model_config: Any

    def sizes(self) -> ModelSizes:
        """The sizes of the model, with the prompt of its captioner."""


def current_gpu() -> Gpu | None:
    """The first GPU that torch sees; None without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Gpu(properties.name, properties.total_memory, (properties.major, properties.minor))


def device_name() -> str:
    """Name of the GPU, or `the CPU`."""
    gpu = current_gpu()
    return gpu.name if gpu else "the CPU"


def defaults_of(
    config: CaptionerConfig, options: EngineOptions, inputs: SizedInputs, *, language_only: bool = False
) -> EngineDefaults:
    """What an engine of this process does for options that are not set.

    Args:
        config: Model, prompt and sampling.
        options: Resources that the engine may use.
        inputs: Those of the model.
        language_only: Whether the engine loads the language model only.

    Raises:
        UserError: The GPU does not have the precision that the settings name.
    """
    gpu, own_dtype = current_gpu(), language_dtype(inputs.model_config)
    return engine_defaults(
        gpu,
        _sizes(inputs, language_only) if gpu else None,
        Precision(config.dtype, own_dtype, config.quantization, config.kv_cache_dtype),
        Share(options.gpu_memory_utilization, config.tensor_parallel_size, options.kv_cache_gib),
        min(CAPTION_TOKENS, max(text.max_new_tokens for text in config.texts)),
    )


def _sizes(inputs: SizedInputs, language_only: bool) -> ModelSizes | None:
    """The sizes of what an engine loads, with the prompt of its captioner; None if config.json does not say them."""
    try:
        sizes = inputs.sizes()
    except Exception:  # noqa: BLE001 - an estimate is not worth an engine, and transformers raises any type
        return None
    if language_only:
        sizes = replace(sizes, parameters=sizes.parameters - sizes.image_parameters, image_parameters=0)
    return sizes
