"""Sizes of vision-language models of any family: weights, KV cache and image tokens."""

import copy
import math
from collections.abc import Sequence
from typing import Any

from lotlip_data.captioners.sizing import CAPTION_TOKENS, ModelSizes

TYPICAL_SIDES = (480, 640)
"""Height and width of the picture whose tokens stand for those of any: models differ in how tokens depend on it."""

PROBE_SIDES = tuple(round(32 * 1.15**step) for step in range(36))
"""Sides, up to 4,262 pixels, of the images whose tokens are counted: any processor reduces a larger picture. The number
of tokens does not grow with a picture alone. Those that cut it into tiles reduce a large one below a smaller one."""

SLOW_PROBE_SIDES = (64, 384, 1024, 4096)
"""The same for a processor that cannot count tokens without preprocessing an image."""

SPARE_TOKENS = 1.05
"""A shape between these can have some more tokens than any of them."""


def vlm_sizes(config: Any, image_tokens: int, prompt_tokens: int = ModelSizes.prompt_tokens) -> ModelSizes:
    """Return the sizes of the model that a configuration describes. It is built on the device `meta`, without memory.

    Args:
        config: The configuration, as transformers' class.
        image_tokens: Number of tokens of a typical image.
        prompt_tokens: Number of tokens of the prompt around it.

    Raises:
        Exception: Of any type, from transformers, for a configuration from which it cannot build a model.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    weights = dict(model.named_parameters())
    heads = text.num_attention_heads
    return ModelSizes(
        parameters=sum(weight.numel() for weight in weights.values()),
        layers=_cached_layers(text, image_tokens + prompt_tokens + CAPTION_TOKENS),
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        image_tokens=image_tokens,
        prompt_tokens=prompt_tokens,
        image_parameters=sum(weight.numel() for name, weight in weights.items() if not _is_language(name)),
    )


def image_tokens(processor: Any, sides: Sequence[tuple[int, int]]) -> list[int]:
    """Return the number of tokens of an image of each size.

    Args:
        processor: A checkpoint's processor, with its size limits.
        sides: Height and width in pixels.
    """
    return _counted_tokens(processor, sides) or _preprocessed_tokens(processor, sides)


def max_image_tokens(processor: Any) -> int:
    """Return the largest number of tokens of an image, over images of many shapes, and some to spare."""
    tokens = _counted_tokens(processor, _shapes(PROBE_SIDES)) or _preprocessed_tokens(
        processor, _shapes(SLOW_PROBE_SIDES)
    )
    return int(SPARE_TOKENS * max(tokens)) + 1


def _shapes(sides: Sequence[int]) -> list[tuple[int, int]]:
    pairs = ((height, width) for height in sides for width in sides)
    return [(height, width) for height, width in pairs if max(height, width) <= 50 * min(height, width)]


def _counted_tokens(processor: Any, sides: Sequence[tuple[int, int]]) -> list[int] | None:
    """The number of tokens by the processor's own arithmetic; None if it has none, or none for its image processor."""
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    try:
        return list(count(image_sizes=[list(size) for size in sides])["num_image_tokens"]) if count else None
    except (TypeError, LookupError, AttributeError):  # LLaVA's expects a size of crops, which a SigLIP tower lacks
        return None


def _preprocessed_tokens(processor: Any, sides: Sequence[tuple[int, int]]) -> list[int]:
    from PIL import Image

    text = str(getattr(processor, "boi_token", None) or getattr(processor, "image_token", "<image>"))
    images = (Image.new("RGB", (width, height)) for height, width in sides)
    inputs = (processor(images=[image], text=[text], return_tensors="pt") for image in images)
    return [fields["input_ids"].shape[1] for fields in inputs]


def _cached_layers(text: Any, sequence: int) -> int:
    """The number of layers that the KV cache holds per token, for a sequence of so many tokens.

    vLLM frees what lies behind the window of a layer with sliding attention.
    """
    layers: int = text.num_hidden_layers
    window = getattr(text, "sliding_window", None)
    sliding = [kind for kind in getattr(text, "layer_types", None) or () if kind == "sliding_attention"]
    if not window or not sliding:
        return layers
    return layers - len(sliding) + math.ceil(len(sliding) * min(1.0, window / sequence))


def _is_language(name: str) -> bool:
    """Whether a parameter, by its name, is the language model's; families have several names for it."""
    return any(part in name for part in ("language_model.", "text_model.")) or name.startswith("lm_head.")
