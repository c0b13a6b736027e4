"""Converts timm's plain ViTs to transformers' ViTModel and back, without timm: its config.json and its tensors.

    timm                           transformers' ViTModel
    cls_token, pos_embed           embeddings.cls_token, embeddings.position_embeddings
    patch_embed.proj               embeddings.patch_embeddings.projection
    blocks.N.attn.qkv [3D, D]      layers.N.attention.{q,k,v}_proj, each [D, D]
    blocks.N.attn.proj             layers.N.attention.o_proj
    blocks.N.norm1, .norm2         layers.N.layernorm_before, .layernorm_after
    blocks.N.mlp.fc1, .fc2         layers.N.mlp.fc1, .fc2
    norm                           layernorm
    head                           dropped: a classifier over the pre-training's classes

N is the number of a layer, D the width. Both compute the same feature: exact GELU, and the class token after the last
norm (with epsilon 1e-6).
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lotlip_data.manifests.errors import UserError

HEAD = ("head.weight", "head.bias")

SIZES = {  # size in the name of an architecture: (width, layers, heads)
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
_MODEL_ARGUMENTS = {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes"}
_OUTSIDE_LAYERS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_INSIDE_LAYERS = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_TIMM_PART = {parts[0]: timm_part for timm_part, parts in _INSIDE_LAYERS.items()}
"""timm's name of a part of a layer, by the first of transformers' names."""


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether the content of a config.json is in timm's format."""
    return "architecture" in config and "model_type" not in config


def vit_config(config: Mapping[str, Any], where: str) -> Any:
    """The ViTConfig of a timm config.json.

    Args:
        config: The content of config.json.
        where: The name of the model, for messages.

    Raises:
        UserError: The architecture is not a plain ViT with a class token.
    """
    from transformers import ViTConfig

    architecture, arguments = str(config["architecture"]), dict(config.get("model_args") or {})
    match = re.fullmatch(r"vit_([a-z]+)_patch(\d+)_(\d+)", architecture)
    if not match or match[1] not in SIZES:
        raise UserError(
            f"{where}: timm's {architecture} is not a plain ViT (vit_SIZE_patchP_IMAGE, SIZE one of "
            f"{', '.join(SIZES)}); use a plain ViT of timm, or a ViT of transformers"
        )
    if (pool := config.get("global_pool", "token")) != "token":
        raise UserError(f"{where}: global_pool is {pool!r}; only 'token', the class token, is supported")
    if unknown := sorted(arguments.keys() - _MODEL_ARGUMENTS):
        raise UserError(f"{where}: model_args sets {', '.join(unknown)}, which a plain ViT does not have")
    width, layers, heads = SIZES[match[1]]
    width = arguments.get("embed_dim", width)
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=arguments.get("depth", layers),
        num_attention_heads=arguments.get("num_heads", heads),
        intermediate_size=int(width * arguments.get("mlp_ratio", 4)),
        patch_size=arguments.get("patch_size", int(match[2])),
        image_size=arguments.get("img_size", int(match[3])),
        layer_norm_eps=1e-6,
    )


def from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors under transformers' names, as views of the same memory, without the head.

    Raises:
        KeyError: A name is not that of a tensor in a plain ViT.
    """
    renamed = {}
    for name, tensor in weights.items():
        if name in HEAD:
            continue
        if name in _OUTSIDE_LAYERS:
            renamed[_OUTSIDE_LAYERS[name]] = tensor
            continue
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if not match or match[2] not in _INSIDE_LAYERS:
            raise KeyError(name)
        layer, timm_part, kind = match.groups()
        parts = _INSIDE_LAYERS[timm_part]
        if len(tensor) % len(parts):
            raise KeyError(name)
        for part, values in zip(parts, tensor.chunk(len(parts)), strict=True):
            renamed[f"layers.{layer}.{part}.{kind}"] = values
    return renamed


def to_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_timm`, in timm's order.

    Raises:
        KeyError: A name is not that of a tensor in a ViTModel, or a tensor is missing.
    """
    outside_layers = {ours: timm_name for timm_name, ours in _OUTSIDE_LAYERS.items()}
    renamed, converted = {}, set()
    for name, tensor in weights.items():
        if name in outside_layers:
            renamed[outside_layers[name]] = tensor
            converted.add(name)
            continue
        match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match and match[2] in _TIMM_PART:
            layer, part, kind = match.groups()
            timm_part = _TIMM_PART[part]
            names = [f"layers.{layer}.{part}.{kind}" for part in _INSIDE_LAYERS[timm_part]]
            tensors = [weights[name] for name in names]
            renamed[f"blocks.{layer}.{timm_part}.{kind}"] = torch.cat(tensors) if len(tensors) > 1 else tensor
            converted.update(names)
    if unknown := sorted(weights.keys() - converted):
        raise KeyError(unknown[0])
    return renamed
