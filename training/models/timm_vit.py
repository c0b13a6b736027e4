"""timm's plain ViTs without timm: its config.json, and its tensors in transformers' names and back.

    timm                           transformers' ViTModel
    cls_token, pos_embed           embeddings.cls_token, embeddings.position_embeddings
    patch_embed.proj               embeddings.patch_embeddings.projection
    blocks.N.attn.qkv [3D, D]      layers.N.attention.{q,k,v}_proj, each [D, D]
    blocks.N.attn.proj             layers.N.attention.o_proj
    blocks.N.norm1, .norm2         layers.N.layernorm_before, .layernorm_after
    blocks.N.mlp.fc1, .fc2         layers.N.mlp.fc1, .fc2
    norm                           layernorm
    head                           left out: a classifier over the pre-training's classes

Both compute the same then: exact GELU, and the class token after the last norm (with epsilon 1e-6) as the feature.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lotlip_data.manifests.errors import UserError

HEAD = ("head.weight", "head.bias")

_SIZES = {  # width, layers, heads of an architecture's name
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
_ARGUMENTS = {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes"}
_OUTER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_PARTS = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_FIRST = {theirs[0]: part for part, theirs in _PARTS.items()}


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of timm's."""
    return "architecture" in config and "model_type" not in config


def vit_config(config: Mapping[str, Any], where: str) -> Any:
    """The ViTConfig of a timm config.json. Raises UserError for an architecture that is not a plain ViT."""
    from transformers import ViTConfig

    architecture, arguments = str(config["architecture"]), dict(config.get("model_args") or {})
    found = re.fullmatch(r"vit_([a-z]+)_patch(\d+)_(\d+)", architecture)
    if not found or found[1] not in _SIZES:
        raise UserError(
            f"{where}: timm's {architecture} is no plain ViT (vit_SIZE_patchP_IMAGE, SIZE one of {', '.join(_SIZES)}); "
            "use one, or a ViT of transformers"
        )
    if (pool := config.get("global_pool", "token")) != "token":
        raise UserError(f"{where}: global_pool is {pool!r}; only 'token', the class token, is a feature here")
    if unknown := sorted(arguments.keys() - _ARGUMENTS):
        raise UserError(f"{where}: model_args sets {', '.join(unknown)}, which a plain ViT does not have")
    width, layers, heads = _SIZES[found[1]]
    width = arguments.get("embed_dim", width)
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=arguments.get("depth", layers),
        num_attention_heads=arguments.get("num_heads", heads),
        intermediate_size=int(width * arguments.get("mlp_ratio", 4)),
        patch_size=arguments.get("patch_size", int(found[2])),
        image_size=arguments.get("img_size", int(found[3])),
        layer_norm_eps=1e-6,
    )


def from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors under transformers' names, views of the same memory; the head is left out.

    Raises KeyError for a name that a plain ViT does not have.
    """
    renamed = {}
    for name, tensor in weights.items():
        if name in HEAD:
            continue
        if name in _OUTER:
            renamed[_OUTER[name]] = tensor
            continue
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if not found or found[2] not in _PARTS:
            raise KeyError(name)
        theirs = _PARTS[found[2]]
        if len(tensor) % len(theirs):
            raise KeyError(name)
        for part, piece in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            renamed[f"layers.{found[1]}.{part}.{found[3]}"] = piece
    return renamed


def to_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_timm`, in timm's order. Raises KeyError for a name that a ViTModel does not have."""
    outer = {theirs: name for name, theirs in _OUTER.items()}
    renamed, taken = {}, set()
    for name, tensor in weights.items():
        if name in outer:
            renamed[outer[name]] = tensor
            taken.add(name)
            continue
        found = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if found and found[2] in _FIRST:
            part = _FIRST[found[2]]
            theirs = [f"layers.{found[1]}.{one}.{found[3]}" for one in _PARTS[part]]
            pieces = [weights[one] for one in theirs]
            renamed[f"blocks.{found[1]}.{part}.{found[3]}"] = torch.cat(pieces) if len(pieces) > 1 else tensor
            taken.update(theirs)
    if left := sorted(weights.keys() - taken):
        raise KeyError(left[0])
    return renamed
