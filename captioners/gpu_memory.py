"""How many captions a GPU writes at a time: what its memory leaves for the attention cache, divided by what one takes.

    python -m lotlip_data.captioners.gpu_memory                  # a GPU of 80 GB, as in examples/8x80gb.yaml
    python -m lotlip_data.captioners.gpu_memory --gpu-gib 39.4   # one of 40 GB

The sizes are the architectures' own, or read from a model's config.json. WORKING_GIB is an assumption: vLLM measures it
when it starts, and says in its log how large the cache became ("GPU KV cache size: … tokens"). Where that differs much,
set `max_num_seqs` by it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions
from lotlip_data.captioners.registry import get_default, get_kind
from lotlip_data.manifests.errors import UserError

GIB = 2**30
WORKING_GIB = 6.0
"""Activations, CUDA graphs, two CUDA contexts (the actor's and the engine's), slack of the allocator."""
CAPTION_TOKENS = 140
"""Of a typical caption: the paper's long texts average 136."""


UNUSABLE = (
    *(StrictDataclassError, ValueError, TypeError, AttributeError),
    *(LookupError, ArithmeticError, AssertionError, RuntimeError),
)
"""What transformers raises of a config.json that it can make no model of."""


@dataclass(frozen=True)
class Sizes:
    """One captioner in 16 bit.

    parameters: of all of it. layers, kv_heads, head_size: of its language model. image_tokens, prompt_tokens: what
    stands before the caption; the prompt is counted generously.
    """

    parameters: int
    layers: int = 32
    kv_heads: int = 32
    head_size: int = 128
    image_tokens: int = 576
    prompt_tokens: int = 60

    @property
    def weights_gib(self) -> float:
        return 2 * self.parameters / GIB

    @property
    def kv_bytes_a_token(self) -> int:
        """A key and a value for each layer and head; Vicuna-7B shares none of them between heads."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size

    def tokens(self, caption: float = CAPTION_TOKENS) -> float:
        """In the cache at the end of a caption of so many tokens."""
        return self.image_tokens + self.prompt_tokens + caption


LLAVA = Sizes(parameters=7_063_427_072)
"""LLaVA-1.5-7B and ShareGPT4V-7B: CLIP ViT-L/14-336 (576 patches), projector, Vicuna-7B."""
INSTRUCTBLIP = Sizes(parameters=7_913_209_856, image_tokens=32, prompt_tokens=40)
"""ViT-g and Q-Former (2.3 GB of it, in the actor's process, beside the engine's), Vicuna-7B; 32 queries an image."""
MODELS = {"llava": LLAVA, "sharegpt4v": LLAVA, "instructblip": INSTRUCTBLIP}


def sizes_of(config: CaptionerConfig) -> Sizes | None:
    """The sizes of a captioner's model: those in MODELS of a published one, else by its own config.json.

    None where that is out of reach, and for kinds of which nothing is known, such as an endpoint. Raises UserError,
    naming the field, for a config.json of another kind or one that no model can be made of.
    """
    if config.kind not in MODELS:
        return None
    if config.model == get_default(config.kind).model:
        return MODELS[config.kind]
    layout = _layout(config)
    if layout is None:
        return None
    try:
        return _sizes(get_kind(config.kind).model_class, layout)
    except UNUSABLE as error:
        found = " ".join(str(error).split()) if isinstance(error, UserError | StrictDataclassError) else repr(error)
        raise UserError(f"captioner {config.name!r}: config.json of {config.model}: {found}") from None


def _layout(config: CaptionerConfig) -> dict[str, Any] | None:
    """What config.json holds; None where the hub is out of reach."""
    from transformers import PretrainedConfig

    from lotlip_data.manifests.checkpoints.resolve import resolve

    options = {"revision": config.revision}
    try:
        source = resolve(config.model)
        get_kind(config.kind).check(source, options)
        return PretrainedConfig.get_config_dict(source, **options)[0]
    except OSError as error:
        if not Path(source).is_dir():
            return None
        raise UserError(f"captioner {config.name!r}: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise UserError(f"captioner {config.name!r}: {error}") from None


def _sizes(model_class: str, layout: dict[str, Any]) -> Sizes:
    """Of what config.json says. Raises UserError naming a field, or whatever transformers raises of it."""
    import torch
    import transformers

    build = getattr(transformers, model_class)
    if (kind := layout.get("model_type")) != (wanted := build.config_class.model_type):
        raise UserError(f"model_type={kind!r}: captioners of this kind need {wanted!r}")
    for part in ("text_config", "vision_config"):
        if not isinstance(layout.get(part), dict):
            raise UserError(f"{part}={layout.get(part)!r}: must hold the settings of that half of the model")
    found = build.config_class.from_dict(layout)

    def number(part: str, name: str) -> int:
        value = getattr(getattr(found, part), name, None)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{part}.{name}={value!r}: must be a whole number above 0")
        return value

    heads, layers = number("text_config", "num_attention_heads"), number("text_config", "num_hidden_layers")
    width, pixels = number("text_config", "hidden_size"), number("vision_config", "image_size")
    patches = (pixels // number("vision_config", "patch_size")) ** 2
    with torch.device("meta"):
        model = build(found)
    return Sizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=layers,
        kv_heads=getattr(found.text_config, "num_key_value_heads", None) or heads,
        head_size=getattr(found.text_config, "head_dim", None) or width // heads,
        image_tokens=getattr(found, "num_query_tokens", None) or patches,
    )


def cache_tokens(
    model: Sizes, gpu_gib: float, utilization: float, gpus: int = 1, cache_gib: float | None = None
) -> int:
    """Tokens that fit into what is left of the used share of the GPUs after the weights and each one's working memory.

    gpus: that one copy of the model is spread over; each has one head of keys and values at least, so where there are
    fewer, some GPUs hold the same ones. cache_gib: of each GPU, where the cache's size is given.
    """
    left = gpus * (utilization * gpu_gib - WORKING_GIB) - model.weights_gib if cache_gib is None else gpus * cache_gib
    held = max(1.0, gpus / model.kv_heads)
    return max(0, int(left * GIB / (model.kv_bytes_a_token * held)))


def sequences(
    model: Sizes,
    gpu_gib: float,
    utilization: float,
    gpus: int = 1,
    cache_gib: float | None = None,
    caption: float = CAPTION_TOKENS,
) -> int:
    """Captions at a time: all of them fit even if all are at their end. A multiple of 16."""
    return int(cache_tokens(model, gpu_gib, utilization, gpus, cache_gib) / model.tokens(caption)) // 16 * 16


def table(gpu_gib: float, utilization: float) -> str:
    rows = ["captioner     weights  KV a token  cache            a caption   max_num_seqs"]
    for name, model in MODELS.items():
        room = cache_tokens(model, gpu_gib, utilization)
        rows.append(
            f"{name:<13} {model.weights_gib:4.1f} GiB  {model.kv_bytes_a_token / 2**20:.1f} MiB     "
            f"{room:>7,} tokens  {model.tokens():>4} tokens  {sequences(model, gpu_gib, utilization):>6}"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Captions at a time, by a GPU's memory.")
    parser.add_argument("--gpu-gib", type=float, default=79.1, help="memory of one GPU, as torch reports it")
    parser.add_argument(
        "--utilization", type=float, default=EngineOptions().gpu_memory_utilization, help="gpu_memory_utilization"
    )
    given = parser.parse_args()
    print(table(given.gpu_gib, given.utilization))
