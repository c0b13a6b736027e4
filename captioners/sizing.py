"""How many captions a GPU writes at a time: what its memory leaves for the attention cache, divided by what one takes.

    python -m lotlip_data.captioners.sizing                  # a GPU of 80 GB, as in examples/8x80gb.yaml
    python -m lotlip_data.captioners.sizing --gpu-gib 39.4   # one of 40 GB

The sizes are the architectures' own, or read from a model's config.json. WORKING_GIB is an assumption: vLLM measures it
when it starts, and says in its log how large the cache became ("GPU KV cache size: … tokens"). Where that differs much,
set `max_num_seqs` by it.
"""

import argparse
from dataclasses import dataclass

from lotlip_data.captioners.base import CaptionerConfig

GIB = 2**30
WORKING_GIB = 6.0
"""Activations, CUDA graphs, two CUDA contexts (the actor's and the engine's), slack of the allocator."""
CAPTION_TOKENS = 140
"""Of a typical caption: the paper's long texts average 136."""


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

    def tokens(self, caption: int = CAPTION_TOKENS) -> int:
        """In the cache at the end of a caption of so many tokens."""
        return self.image_tokens + self.prompt_tokens + caption


LLAVA = Sizes(parameters=7_063_427_072)
"""LLaVA-1.5-7B and ShareGPT4V-7B: CLIP ViT-L/14-336 (576 patches), projector, Vicuna-7B."""
INSTRUCTBLIP = Sizes(parameters=7_913_209_856, image_tokens=32, prompt_tokens=40)
"""ViT-g and Q-Former (2.3 GB of it, in the actor's process, beside the engine's), Vicuna-7B; 32 queries an image."""
MODELS = {"llava": LLAVA, "sharegpt4v": LLAVA, "instructblip": INSTRUCTBLIP}


def sizes_of(config: CaptionerConfig) -> Sizes | None:
    """The sizes of a captioner's model: those in MODELS of a published one, else by its own config.json.

    None where that is out of reach, or there is none, as behind an endpoint.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    from lotlip_data.captioners.registry import get_default, get_kind
    from lotlip_data.manifests.checkpoints import resolve

    kind = get_kind(config.kind)
    if not getattr(kind, "model_class", None):
        return None
    if config.kind in MODELS and config.model == get_default(config.kind).model:
        return MODELS[config.kind]
    try:
        found = AutoConfig.from_pretrained(resolve(config.model), revision=config.revision)
    except (OSError, ValueError):
        return None
    with torch.device("meta"):
        model = getattr(transformers, kind.model_class)(found)
    language, vision = found.get_text_config(), found.vision_config
    heads = language.num_attention_heads
    queries = getattr(found, "num_query_tokens", None)
    return Sizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=language.num_hidden_layers,
        kv_heads=getattr(language, "num_key_value_heads", None) or heads,
        head_size=getattr(language, "head_dim", None) or language.hidden_size // heads,
        image_tokens=queries or (vision.image_size // vision.patch_size) ** 2,
    )


def cache_tokens(model: Sizes, gpu_gib: float, utilization: float) -> int:
    """Tokens that fit into what is left of the GPU's used share after the weights and the working memory."""
    left = utilization * gpu_gib - model.weights_gib - WORKING_GIB
    return max(0, int(left * GIB / model.kv_bytes_a_token))


def sequences(model: Sizes, gpu_gib: float, utilization: float) -> int:
    """Captions at a time: all of them fit even if all are at their end. A multiple of 16."""
    return cache_tokens(model, gpu_gib, utilization) // model.tokens() // 16 * 16


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
    parser.add_argument("--utilization", type=float, default=0.9, help="gpu_memory_utilization")
    given = parser.parse_args()
    print(table(given.gpu_gib, given.utilization))
