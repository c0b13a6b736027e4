"""How much memory a model takes, and what an engine does by default on the GPU that it has.

Everything here is arithmetic on descriptions: of a GPU (`Gpu`) and of a model (`ModelSizes`). Nothing is loaded, so the
defaults of a GPU are known, and tested, without one.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

from lotlip_data.manifests import wording
from lotlip_data.manifests.errors import UserError

BYTES_PER_GIB = 2**30
BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}
WORKING_MEMORY_GIB = 6.0
"""Activations, CUDA graphs, two CUDA contexts (the actor's and the engine's) and the allocator's slack."""
CAPTION_TOKENS = 140
"""Length of a typical caption; the paper's long texts average 136 tokens."""
PROMPT_TOKENS_WITHOUT_ROLES = 40
"""Of InstructBLIP's prompt, which has no names of roles around it, as an upper estimate."""
SEQUENCE_MULTIPLE = 16

CPU_SEQUENCES, CPU_BATCH_SIZE, CPU_READ_BATCH = 64, 16, 32
GPU_READ_BATCH, LARGE_READ_BATCH = 64, 128
LARGE_WINDOW = 256
"""Number of captions in hand above which an engine gets the larger batches."""
MAX_SEQUENCES = 1024
"""vLLM's own default on the largest GPUs. More captions at a time gain nothing, and each takes memory of the host."""
MIN_SEQUENCES = 8
"""Where the estimate leaves no room: vLLM measures the memory, and says what is missing if there is none."""
UNKNOWN_SEQUENCES = 64
"""For a model whose sizes cannot be told from its config.json."""
GPU_BATCH_SIZE = 32
"""Images that an image tower or `generate` takes at a time. Beyond some tens, they keep a GPU busy."""
MAX_DECODERS = 4
"""Four threads prepare about 400 images of 683×512 pixels a second, more than an engine captions."""
BFLOAT16_CAPABILITY = (8, 0)
"""Ampere."""
FP8_WEIGHTS_CAPABILITY = (8, 9)
"""Ada: the oldest GPUs that multiply in FP8."""
FP8_CACHE_CAPABILITY = (9, 0)
"""Hopper: the oldest GPUs whose attention reads a cache in FP8 as fast as one in 16 bit."""

FP8_PER_CHANNEL = "fp8_per_channel"
"""vLLM's quantization on load with a scale per output channel, and one per token for activations. It has no form in
which only the weights are in FP8, so older GPUs do not run it."""

_BYTES_OF_QUANTIZED_WEIGHT = {"fp8": 1.0, "int8": 1.0, "awq": 0.6, "gptq": 0.6, "fp4": 0.6, "bitsandbytes": 0.6}
"""By a part of vLLM's name of a quantization. 4 bits have scales besides."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, as torch describes it.

    Attributes:
        name: Such as `NVIDIA H100 80GB HBM3`.
        memory: In bytes.
        capability: Major and minor number of its compute capability.
    """

    name: str
    memory: int
    capability: tuple[int, int]

    @property
    def gib(self) -> float:
        """Memory in GiB."""
        return self.memory / BYTES_PER_GIB

    @property
    def has_bfloat16(self) -> bool:
        return self.capability >= BFLOAT16_CAPABILITY

    @property
    def has_fp8_cache(self) -> bool:
        return self.capability >= FP8_CACHE_CAPABILITY


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of one captioner's model, in 16 bit unless `stored_as` says otherwise.

    Attributes:
        parameters: Number of parameters of the whole model.
        layers: Number of layers of its language model.
        kv_heads: Number of key-value heads per layer of its language model.
        head_size: Dimension of a head.
        image_tokens: Number of tokens of an image.
        prompt_tokens: Number of tokens of the prompt, as an upper estimate.
        image_parameters: Number of those of `parameters` that are outside the language model.
        weight_bytes: Bytes of a weight.
        language_weight_bytes: Bytes of a weight of the language model.
        cache_bytes: Bytes of a value in the KV cache.
    """

    parameters: int
    layers: int = 32
    kv_heads: int = 32
    head_size: int = 128
    image_tokens: int = 576
    prompt_tokens: int = 60
    image_parameters: int = 0
    weight_bytes: float = 2
    language_weight_bytes: float = 2
    cache_bytes: float = 2

    def stored_as(self, dtype: str, quantization: str | None, kv_cache_dtype: str) -> "ModelSizes":
        """The sizes with other precisions.

        Args:
            dtype: Precision of the weights.
            quantization: vLLM's name of the quantization of the language model.
            kv_cache_dtype: Precision of the KV cache as vLLM names it; `auto` is `dtype`.
        """
        width = BYTES_PER_VALUE.get(dtype, 2)
        quantized = [size for name, size in _BYTES_OF_QUANTIZED_WEIGHT.items() if name in (quantization or "")]
        return replace(
            self,
            weight_bytes=width,
            language_weight_bytes=quantized[0] if quantized else width,
            cache_bytes=1 if kv_cache_dtype.startswith("fp8") else width,
        )

    @property
    def weights_gib(self) -> float:
        """Memory of the weights in GiB."""
        language = (self.parameters - self.image_parameters) * self.language_weight_bytes
        return (language + self.image_parameters * self.weight_bytes) / BYTES_PER_GIB

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token in the KV cache: a key and a value per layer and head."""
        return int(2 * self.cache_bytes * self.layers * self.kv_heads * self.head_size)

    def sequence_tokens(self, caption_tokens: float = CAPTION_TOKENS) -> float:
        """Number of tokens in the KV cache when a caption of `caption_tokens` tokens ends."""
        return self.image_tokens + self.prompt_tokens + caption_tokens


LLAVA = ModelSizes(parameters=7_063_427_072, image_parameters=324_487_168)
"""LLaVA-1.5-7B and ShareGPT4V-7B: CLIP ViT-L/14-336 (576 patches), projector, Vicuna-7B."""
INSTRUCTBLIP = ModelSizes(
    parameters=7_913_209_856, image_parameters=1_174_786_048, image_tokens=32, prompt_tokens=PROMPT_TOKENS_WITHOUT_ROLES
)
"""ViT-g and Q-Former (2.3 GB, in the actor's process next to the engine's), Vicuna-7B; 32 query tokens per image."""


def sizes_of(architecture: Any, config: Any) -> ModelSizes:
    """The sizes of the model that a configuration describes. It is built on the device `meta`, without memory.

    Args:
        architecture: A class of transformers with a vision and a language half.
        config: Its configuration.

    Raises:
        UserError: A field is missing or invalid.
        Exception: Of any type, from transformers, for a configuration from which it cannot build a model.
    """
    import torch

    def positive(part: str, name: str) -> int:
        value = getattr(getattr(config, part), name, None)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{part}.{name}={value!r}: must be a whole number above 0")
        return value

    heads, layers = positive("text_config", "num_attention_heads"), positive("text_config", "num_hidden_layers")
    hidden_size, image_size = positive("text_config", "hidden_size"), positive("vision_config", "image_size")
    patches = (image_size // positive("vision_config", "patch_size")) ** 2
    query_tokens = getattr(config, "num_query_tokens", None)
    with torch.device("meta"):
        weights = dict(architecture(config).named_parameters())
    return ModelSizes(
        parameters=sum(weight.numel() for weight in weights.values()),
        layers=layers,
        kv_heads=getattr(config.text_config, "num_key_value_heads", None) or heads,
        head_size=getattr(config.text_config, "head_dim", None) or hidden_size // heads,
        image_tokens=query_tokens or patches,
        prompt_tokens=PROMPT_TOKENS_WITHOUT_ROLES if query_tokens else ModelSizes.prompt_tokens,
        image_parameters=sum(weight.numel() for name, weight in weights.items() if not _is_language(name)),
    )


def _is_language(name: str) -> bool:
    """Whether a parameter, by its name, is the language model's."""
    return "language_model." in name or name.startswith("lm_head.")


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


@dataclass(frozen=True)
class Share:
    """The part of a machine's GPUs that an engine may use.

    Attributes:
        utilization: Share of a GPU's memory, 0 to 1.
        gpus: Number of GPUs that one copy of the model is spread over.
        cache_gib: Size of the KV cache on each GPU in GiB, if it is set explicitly.
    """

    utilization: float = 0.9
    gpus: int = 1
    cache_gib: float | None = None


@dataclass(frozen=True)
class Precision:
    """The precisions that a captioner's settings ask for.

    Attributes:
        dtype: Of the weights: one of BYTES_PER_VALUE, or `auto`.
        own_dtype: That of the language model in its checkpoint; `auto` if its config.json does not say it.
        quantization: Of the language model, as vLLM names it.
        kv_cache_dtype: Of the KV cache: `auto`, `fp8` or `fp8_hopper`.
    """

    dtype: str = "auto"
    own_dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"


@dataclass(frozen=True)
class EngineDefaults:
    """What an engine uses for options that are not set.

    Attributes:
        dtype: Precision of all weights.
        kv_cache_dtype: Precision of the KV cache as vLLM names it; `auto` is `dtype`.
        max_num_seqs: Number of captions that vLLM generates at a time.
        batch_size: Number of images per forward pass of transformers and of an image half.
    """

    dtype: str
    kv_cache_dtype: str
    max_num_seqs: int
    batch_size: int


def engine_defaults(
    gpu: Gpu | None,
    model: ModelSizes | None,
    precision: Precision,
    share: Share,
    caption_tokens: float = CAPTION_TOKENS,
) -> EngineDefaults:
    """What an engine uses on a GPU, or without one, for options that are not set.

    Args:
        gpu: The GPU, or each of several equal ones; None for the CPU.
        model: Sizes of what the engine loads; None if they are not known.
        precision: What the captioner's settings ask for.
        share: The part of the GPUs that the engine may use.
        caption_tokens: Length of a caption in tokens.

    Raises:
        UserError: The GPU does not have the precision that the settings name.
    """
    dtype = resolve_dtype(precision.dtype, precision.own_dtype, gpu)
    cache_dtype = _resolve_cache_dtype(precision.kv_cache_dtype, gpu)
    if precision.quantization == FP8_PER_CHANNEL:
        _require(gpu, FP8_WEIGHTS_CAPABILITY, f"quantization: {precision.quantization}")
    if gpu is None:
        return EngineDefaults(dtype, cache_dtype, CPU_SEQUENCES, CPU_BATCH_SIZE)
    if model is None:
        return EngineDefaults(dtype, cache_dtype, UNKNOWN_SEQUENCES, GPU_BATCH_SIZE)
    sizes = model.stored_as(dtype, precision.quantization, cache_dtype)
    tokens = kv_cache_tokens(sizes, gpu.gib, share.utilization, share.gpus, share.cache_gib)
    fit = int(tokens / sizes.sequence_tokens(caption_tokens))
    if fit >= SEQUENCE_MULTIPLE:
        fit = fit // SEQUENCE_MULTIPLE * SEQUENCE_MULTIPLE
    sequences = min(max(fit, MIN_SEQUENCES), MAX_SEQUENCES)
    return EngineDefaults(dtype, cache_dtype, sequences, min(GPU_BATCH_SIZE, sequences))


def resolve_dtype(dtype: str, own_dtype: str, gpu: Gpu | None) -> str:
    """The precision of all weights of a model.

    Args:
        dtype: The captioner's setting.
        own_dtype: The precision of the language model in its checkpoint; `auto` if it is not known.
        gpu: The GPU; None for the CPU.

    Returns:
        The setting itself unless it is `auto`. Then float32 without a GPU. With one, the language model's precision,
        or float16 for a language model in bfloat16 on a GPU that lacks bfloat16.

    Raises:
        UserError: The setting is bfloat16, and the GPU lacks it.
    """
    if dtype != "auto":
        if dtype == "bfloat16" and gpu:
            _require(gpu, BFLOAT16_CAPABILITY, "dtype: bfloat16")
        return dtype
    if gpu is None:
        return "float32"
    return "float16" if own_dtype == "bfloat16" and not gpu.has_bfloat16 else own_dtype


def language_dtype(config: Any) -> str:
    """The precision of the language model in its checkpoint, by its configuration of transformers; `auto` if unknown.

    The hub's InstructBLIP says float32 for the whole and float16 for its language model, which the weights of the
    language model are.
    """
    for part in (config.get_text_config(), config):
        if dtype := getattr(part, "dtype", None):
            return str(dtype).removeprefix("torch.")
    return "auto"


@dataclass(frozen=True)
class ReadingDefaults:
    """How a worker reads images for its engine.

    Attributes:
        decoders: Number of threads that decode and resize images.
        read_batch: Number of images that are read at a time; as many again are read ahead.
    """

    decoders: int
    read_batch: int

    def __str__(self) -> str:
        threads, images = wording.count(self.decoders, "decoding thread"), wording.count(self.read_batch, "image")
        return f"{threads}, {images} read at a time"


def reading_defaults(cores: int | None = None, gpus: int = 0, sequences: int = 0) -> ReadingDefaults:
    """How a worker reads images for its engine.

    Args:
        cores: CPU cores that this process may use. Default: ask the operating system.
        gpus: Number of GPUs of the machine, whose actors share the cores; 0 for an engine that has no GPU.
        sequences: Number of captions that the engine has in hand.
    """
    cores = cores or len(os.sched_getaffinity(0))
    decoders = max(1, min(MAX_DECODERS, cores // max(1, gpus)))
    if not gpus:
        return ReadingDefaults(decoders, CPU_READ_BATCH)
    return ReadingDefaults(decoders, LARGE_READ_BATCH if sequences > LARGE_WINDOW else GPU_READ_BATCH)


def _resolve_cache_dtype(setting: str, gpu: Gpu | None) -> str:
    if setting == "fp8_hopper":
        return "fp8" if gpu and gpu.has_fp8_cache else "auto"
    return setting


def _require(gpu: Gpu | None, capability: tuple[int, int], setting: str) -> None:
    """Raise UserError unless the GPU has a compute capability."""
    if gpu and gpu.capability >= capability:
        return
    needed, own = ".".join(map(str, capability)), ".".join(map(str, gpu.capability)) if gpu else ""
    problem = f"{gpu.name} has {own}" if gpu else "there is no GPU"
    raise UserError(f"{setting} needs a GPU of compute capability {needed} or newer, and {problem}; leave it out")
