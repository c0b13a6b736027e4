"""Estimates how many captions a GPU generates concurrently: the memory left for the KV cache, per caption.

    python -m lotlip_data.captioners.gpu_memory                  # a GPU of 80 GB, as in examples/8x80gb.yaml
    python -m lotlip_data.captioners.gpu_memory --gpu-gib 39.4   # a GPU of 40 GB

Sizes are those of the published architectures, or are read from a model's config.json. WORKING_MEMORY_GIB is an
assumption: vLLM measures this memory when it starts, and the line "engine ready" has the tokens of the resulting
cache. If that differs much from the estimate, set `max_num_seqs` accordingly.
"""

import argparse
import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions
from lotlip_data.captioners.registry import get_default, get_kind
from lotlip_data.manifests.checkpoints.hub import ModelUnavailable, read_config
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.errors import UserError

logger = logging.getLogger(__name__)

BYTES_PER_GIB = 2**30
BYTES_PER_VALUE = 2
"""Weights and cache are in 16 bit."""
WORKING_MEMORY_GIB = 6.0
"""Activations, CUDA graphs, two CUDA contexts (the actor's and the engine's) and the allocator's slack."""
CAPTION_TOKENS = 140
"""Length of a typical caption; the paper's long texts average 136 tokens."""
SEQUENCE_MULTIPLE = 16

INVALID_CONFIG_ERRORS = (
    *(StrictDataclassError, ValueError, TypeError, AttributeError),
    *(LookupError, ArithmeticError, AssertionError, RuntimeError),
)
"""What transformers raises for a config.json from which it cannot build a model."""


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of one captioner's model, which is loaded in 16 bit.

    Attributes:
        parameters: Number of parameters of the whole model.
        layers: Number of layers of its language model.
        kv_heads: Number of key-value heads per layer of its language model.
        head_size: Dimension of a head.
        image_tokens: Number of tokens of an image.
        prompt_tokens: Number of tokens of the prompt, as an upper estimate.
    """

    parameters: int
    layers: int = 32
    kv_heads: int = 32
    head_size: int = 128
    image_tokens: int = 576
    prompt_tokens: int = 60

    @property
    def weights_gib(self) -> float:
        """Memory of the weights in GiB."""
        return BYTES_PER_VALUE * self.parameters / BYTES_PER_GIB

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token in the KV cache: a key and a value per layer and head."""
        return 2 * BYTES_PER_VALUE * self.layers * self.kv_heads * self.head_size

    def sequence_tokens(self, caption_tokens: float = CAPTION_TOKENS) -> float:
        """Number of tokens in the KV cache when a caption of `caption_tokens` tokens ends."""
        return self.image_tokens + self.prompt_tokens + caption_tokens


LLAVA = ModelSizes(parameters=7_063_427_072)
"""LLaVA-1.5-7B and ShareGPT4V-7B: CLIP ViT-L/14-336 (576 patches), projector, Vicuna-7B."""
INSTRUCTBLIP = ModelSizes(parameters=7_913_209_856, image_tokens=32, prompt_tokens=40)
"""ViT-g and Q-Former (2.3 GB, in the actor's process next to the engine's), Vicuna-7B; 32 query tokens per image."""
PUBLISHED_SIZES = {"llava": LLAVA, "sharegpt4v": LLAVA, "instructblip": INSTRUCTBLIP}
"""Sizes of the published checkpoint by captioner kind."""


def read_model_sizes(config: CaptionerConfig) -> ModelSizes | None:
    """Return the sizes of a captioner's model: the known ones of a published checkpoint, else from its config.json.

    Returns:
        None if the hub cannot be reached, if transformers is not installed, or for kinds whose model is unknown, such
        as an endpoint.

    Raises:
        UserError: The config.json belongs to another kind or describes no valid model; the message names the field.
    """
    if config.kind not in PUBLISHED_SIZES:
        return None
    if config.model == get_default(config.kind).model:
        return PUBLISHED_SIZES[config.kind]
    if find_spec("transformers") is None:
        logger.warning(
            "captioner %r: the size of %s is not estimated, because transformers is not installed; "
            "install lotlip-data[full]",
            config.name,
            config.model,
        )
        return None
    layout = _read_layout(config)
    if layout is None:
        return None
    try:
        return _sizes_from_layout(get_kind(config.kind).model_class, layout)
    except INVALID_CONFIG_ERRORS as error:
        readable = isinstance(error, UserError | StrictDataclassError)
        reason = " ".join(str(error).split()) if readable else repr(error)
        raise UserError(f"captioner {config.name!r}: config.json of {config.model}: {reason}") from None


def kv_cache_tokens(
    model: ModelSizes, gpu_gib: float, utilization: float, gpus: int = 1, cache_gib: float | None = None
) -> int:
    """Estimate the number of tokens that the KV cache holds.

    The cache takes what remains of the GPUs' memory after the weights and the working memory of each GPU.

    Args:
        model: Sizes of the model.
        gpu_gib: Memory of one GPU in GiB.
        utilization: Share of that memory that the engine uses, 0 to 1.
        gpus: Number of GPUs that one copy of the model is spread over. Each holds at least one key-value head, so with
            fewer heads than GPUs some GPUs hold the same head.
        cache_gib: Size of the cache on each GPU in GiB, if it is set explicitly.
    """
    if cache_gib is None:
        free_gib = gpus * (utilization * gpu_gib - WORKING_MEMORY_GIB) - model.weights_gib
    else:
        free_gib = gpus * cache_gib
    copies_per_head = max(1.0, gpus / model.kv_heads)
    return max(0, int(free_gib * BYTES_PER_GIB / (model.kv_bytes_per_token * copies_per_head)))


def max_sequences(
    model: ModelSizes,
    gpu_gib: float,
    utilization: float,
    gpus: int = 1,
    cache_gib: float | None = None,
    caption_tokens: float = CAPTION_TOKENS,
) -> int:
    """Estimate the number of concurrent captions, a multiple of 16, that fit even if all reach their end together.

    Args:
        model: Sizes of the model.
        gpu_gib: Memory of one GPU in GiB.
        utilization: Share of that memory that the engine uses, 0 to 1.
        gpus: Number of GPUs that one copy of the model is spread over.
        cache_gib: Size of the cache on each GPU in GiB, if it is set explicitly.
        caption_tokens: Length of a caption in tokens.
    """
    tokens = kv_cache_tokens(model, gpu_gib, utilization, gpus, cache_gib)
    return int(tokens / model.sequence_tokens(caption_tokens)) // SEQUENCE_MULTIPLE * SEQUENCE_MULTIPLE


def format_table(gpu_gib: float, utilization: float) -> str:
    """Return a table of the published models on one GPU: weights, cache and `max_num_seqs`."""
    rows = ["captioner     weights  KV a token  cache            a caption   max_num_seqs"]
    for name, model in PUBLISHED_SIZES.items():
        cache_tokens = kv_cache_tokens(model, gpu_gib, utilization)
        rows.append(
            f"{name:<13} {model.weights_gib:4.1f} GiB  {model.kv_bytes_per_token / 2**20:.1f} MiB     "
            f"{cache_tokens:>7,} tokens  {model.sequence_tokens():>4} tokens  "
            f"{max_sequences(model, gpu_gib, utilization):>6}"
        )
    return "\n".join(rows)


def _read_layout(config: CaptionerConfig) -> dict[str, Any] | None:
    """Return the content of config.json; None if the model is not on this machine and the hub does not give it."""
    try:
        source = resolve(config.model)
        get_kind(config.kind).check(source, {"revision": config.revision})
        return read_config(source, config.revision)
    except ModelUnavailable as error:
        if not Path(source).is_dir():
            return None
        raise UserError(f"captioner {config.name!r}: {error}") from None
    except ValueError as error:
        raise UserError(f"captioner {config.name!r}: {error}") from None


def _sizes_from_layout(model_class: str, layout: dict[str, Any]) -> ModelSizes:
    """Return the sizes that a config.json describes.

    Raises:
        UserError: A field is missing or invalid.
        Exception: One of INVALID_CONFIG_ERRORS, from transformers.
    """
    import torch
    import transformers

    architecture = getattr(transformers, model_class)
    expected_type = architecture.config_class.model_type
    if (model_type := layout.get("model_type")) != expected_type:
        raise UserError(f"model_type={model_type!r}: captioners of this kind need {expected_type!r}")
    for part in ("text_config", "vision_config"):
        if not isinstance(layout.get(part), dict):
            raise UserError(f"{part}={layout.get(part)!r}: must hold the settings of that half of the model")
    config = architecture.config_class.from_dict(layout)

    def positive(part: str, name: str) -> int:
        value = getattr(getattr(config, part), name, None)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{part}.{name}={value!r}: must be a whole number above 0")
        return value

    heads, layers = positive("text_config", "num_attention_heads"), positive("text_config", "num_hidden_layers")
    hidden_size, image_size = positive("text_config", "hidden_size"), positive("vision_config", "image_size")
    patches = (image_size // positive("vision_config", "patch_size")) ** 2
    with torch.device("meta"):
        model = architecture(config)
    return ModelSizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=layers,
        kv_heads=getattr(config.text_config, "num_key_value_heads", None) or heads,
        head_size=getattr(config.text_config, "head_dim", None) or hidden_size // heads,
        image_tokens=getattr(config, "num_query_tokens", None) or patches,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimate the number of concurrent captions from a GPU's memory.")
    parser.add_argument("--gpu-gib", type=float, default=79.1, help="Memory of one GPU in GiB, as torch reports it.")
    parser.add_argument(
        "--utilization",
        type=float,
        default=EngineOptions().gpu_memory_utilization,
        help="Share of that memory that vLLM uses (`gpu_memory_utilization`), 0 to 1.",
    )
    arguments = parser.parse_args()
    print(format_table(arguments.gpu_gib, arguments.utilization))


if __name__ == "__main__":
    main()
