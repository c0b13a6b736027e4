"""The names of CLIP's and SigLIP's tensors in open_clip and in transformers.

Values are never computed with, so tensors go to transformers and back bit for bit. What differs:

- open_clip keeps the three projections of an attention in one tensor. SigLIP's pooling has two: the queries', and the
  keys' and values' together; transformers has one.
- Projections of CLIP are transposed.
- SigLIP's image positions have a first dimension of one; its scale and bias are scalars.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class _Renaming(NamedTuple):
    """Tensors of open_clip and of transformers that hold the same values, along the first dimension."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    shape: Literal["same", "transposed", "nested", "scalar"] = "same"
    """`nested`: theirs have a first dimension of one, which ours lack. `scalar`: ours has it, theirs is a scalar."""
    shares: tuple[int, ...] = (1,)
    """The relative sizes of theirs."""


_reshape: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "same": (lambda value: value, lambda value: value),
    "transposed": (lambda value: value.T, lambda value: value.T),
    "nested": (lambda value: value[0], lambda value: value[None]),
    "scalar": (lambda value: value[None], lambda value: value[0]),
}
"""How values become ours, and theirs."""

_LAYER = re.compile(r"(?:blocks|layers)\.(\d+)\.")
_KINDS = ("weight", "bias")

_OPEN_CLIP_PARTS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"} | {
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TIMM_PARTS = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"} | {
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors under the names of transformers' CLIPModel or SiglipModel.

    Raises KeyError if a tensor is missing, or is not one of such a model.
    """
    renamed: dict[str, Tensor] = {}
    left = dict(weights)
    for renaming in _renamings(weights, is_siglip="visual.trunk.pos_embed" in weights):
        theirs = [left.pop(name) for name in renaming.theirs]
        value = torch.cat(theirs) if len(theirs) > 1 else theirs[0]
        value = _reshape[renaming.shape][0](value)
        parts = value.chunk(len(renaming.ours)) if len(renaming.ours) > 1 else (value,)
        renamed |= zip(renaming.ours, parts, strict=True)
    if left:
        raise KeyError(next(iter(left)))
    return renamed


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_transformers`. Raises KeyError if a tensor is missing, or is not one of such a model."""
    renamed: dict[str, Tensor] = {}
    left = dict(weights)
    for renaming in _renamings(weights, is_siglip="vision_model.head.probe" in weights):
        ours = [left.pop(name) for name in renaming.ours]
        value = torch.cat(ours) if len(ours) > 1 else ours[0]
        value = _reshape[renaming.shape][1](value)
        parts: Sequence[Tensor] = (value,)
        if len(renaming.theirs) > 1:
            parts = value.split([len(value) * share // sum(renaming.shares) for share in renaming.shares])
        renamed |= zip(renaming.theirs, parts, strict=True)
    if left:
        raise KeyError(next(iter(left)))
    return renamed


def _renamings(names: Iterable[str], *, is_siglip: bool) -> list[_Renaming]:
    """All renamings of a model with tensors of these names, of either library."""
    numbers: dict[bool, set[int]] = {True: set(), False: set()}
    for name in names:
        if match := _LAYER.search(name):
            numbers[name.startswith(("visual.", "vision_model."))].add(int(match[1]))
    return list((_siglip if is_siglip else _clip)(len(numbers[True]), len(numbers[False])))


def _same(theirs: str, ours: str, kinds: Iterable[str] = _KINDS) -> Iterator[_Renaming]:
    yield from (_Renaming((f"{theirs}.{kind}",), (f"{ours}.{kind}",)) for kind in kinds)


def _stack(theirs: str, ours: str, layers: int, parts: Mapping[str, str], qkv: str) -> Iterator[_Renaming]:
    """The layers of a transformer. `qkv` names the projections of an attention, without weight or bias."""
    for layer in range(layers):
        for their_part, our_part in parts.items():
            yield from _same(f"{theirs}.{layer}.{their_part}", f"{ours}.{layer}.{our_part}")
        for kind in _KINDS:
            split = tuple(f"{ours}.{layer}.self_attn.{one}_proj.{kind}" for one in "qkv")
            yield _Renaming((f"{theirs}.{layer}.{qkv}{kind}",), split)


def _clip(vision: int, text: int) -> Iterator[_Renaming]:
    image, words = "vision_model", "text_model"
    yield _Renaming(("logit_scale",), ("logit_scale",))
    yield _Renaming(("visual.class_embedding",), (f"{image}.embeddings.class_embedding",))
    yield _Renaming(("visual.positional_embedding",), (f"{image}.embeddings.position_embedding.weight",))
    yield from _same("visual.conv1", f"{image}.embeddings.patch_embedding", ("weight",))
    yield from _same("visual.ln_pre", f"{image}.pre_layrnorm")
    yield from _stack(
        "visual.transformer.resblocks", f"{image}.encoder.layers", vision, _OPEN_CLIP_PARTS, "attn.in_proj_"
    )
    yield from _same("visual.ln_post", f"{image}.post_layernorm")
    yield _Renaming(("visual.proj",), ("visual_projection.weight",), shape="transposed")
    yield from _same("token_embedding", f"{words}.embeddings.token_embedding", ("weight",))
    yield _Renaming(("positional_embedding",), (f"{words}.embeddings.position_embedding.weight",))
    yield from _stack("transformer.resblocks", f"{words}.encoder.layers", text, _OPEN_CLIP_PARTS, "attn.in_proj_")
    yield from _same("ln_final", f"{words}.final_layer_norm")
    yield _Renaming(("text_projection",), ("text_projection.weight",), shape="transposed")


def _siglip(vision: int, text: int) -> Iterator[_Renaming]:
    """A vision transformer of timm with attention pooling, and a text encoder of open_clip."""
    image, words = "vision_model", "text_model"
    yield from (_Renaming((name,), (name,), "scalar") for name in ("logit_scale", "logit_bias"))
    yield _Renaming(("visual.trunk.pos_embed",), (f"{image}.embeddings.position_embedding.weight",), shape="nested")
    yield from _same("visual.trunk.patch_embed.proj", f"{image}.embeddings.patch_embedding")
    yield from _stack("visual.trunk.blocks", f"{image}.encoder.layers", vision, _TIMM_PARTS, "attn.qkv.")
    yield from _same("visual.trunk.norm", f"{image}.post_layernorm")
    pool, head = "visual.trunk.attn_pool", f"{image}.head"
    yield _Renaming((f"{pool}.latent",), (f"{head}.probe",))
    for kind in _KINDS:
        yield _Renaming((f"{pool}.q.{kind}", f"{pool}.kv.{kind}"), (f"{head}.attention.in_proj_{kind}",), shares=(1, 2))
    yield from _same(f"{pool}.proj", f"{head}.attention.out_proj")
    yield from _same(f"{pool}.norm", f"{head}.layernorm")
    for part in ("mlp.fc1", "mlp.fc2"):
        yield from _same(f"{pool}.{part}", f"{head}.{part}")
    yield from _same("text.token_embedding", f"{words}.embeddings.token_embedding", ("weight",))
    yield _Renaming(("text.positional_embedding",), (f"{words}.embeddings.position_embedding.weight",))
    yield from _stack("text.transformer.resblocks", f"{words}.encoder.layers", text, _OPEN_CLIP_PARTS, "attn.in_proj_")
    yield from _same("text.ln_final", f"{words}.final_layer_norm")
    yield from _same("text.text_projection", f"{words}.head")
