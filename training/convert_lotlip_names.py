"""The tensors of the authors' released LoTLIP under our names, and back, bit for bit.

open_clip, as the authors use it        ours
logit_scale                             log_scale
visual.trunk.*  (timm's names)          image.vit.*  (transformers' names: see timm_vit.py)
text.transformer.*                      text.encoder.*
text.proj.weight                        text.proj.weight
text.transformer.embeddings.position_ids    left out: 0, 1, 2, …, which old versions of transformers saved
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lotlip_data.manifests.errors import UserError
from lotlip_data.training import timm_vit

POSITION_IDS = "text.transformer.embeddings.position_ids"
WORDS = "text.transformer.embeddings.word_embeddings.weight"
PATCHES = "visual.trunk.patch_embed.proj.weight"
POSITIONS = "visual.trunk.pos_embed"


def unwrapped(found: Any, where: str) -> dict[str, Tensor]:
    """The tensors of what a checkpoint file holds: alone or under `state_dict`, with or without DDP's `module.`.

    Raises UserError where it holds something else.
    """
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{where}: holds no table of named tensors, as a LoTLIP checkpoint does")
    wrapped = [name.startswith("module.") for name in found]
    if any(wrapped) and not all(wrapped):
        raise UserError(f"{where}: some names begin with module. and some do not; two checkpoints were mixed")
    return {name.removeprefix("module.") if all(wrapped) else name: value for name, value in found.items()}


def to_ours(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The authors' tensors under our names. Raises UserError for one that has no place."""
    renamed, trunk = {}, {}
    for name, tensor in weights.items():
        if name == POSITION_IDS:
            if not torch.equal(tensor, position_ids(tensor.shape[-1])):
                raise UserError(f"{where}: {name} is not 0, 1, 2, …; such a text tower is not supported")
        elif name == "logit_scale":
            renamed["log_scale"] = tensor
        elif name == "text.proj.weight":
            renamed[name] = tensor
        elif name.startswith("text.transformer."):
            renamed[f"text.encoder.{name.removeprefix('text.transformer.')}"] = tensor
        elif (inner := name.removeprefix("visual.trunk.")) != name and inner not in timm_vit.HEAD:
            trunk[inner] = tensor
        else:
            raise _foreign(where, name)
    try:
        image = timm_vit.from_timm(trunk)
    except KeyError as error:
        raise _foreign(where, f"visual.trunk.{error.args[0]}") from None
    return {**{f"image.vit.{name}": tensor for name, tensor in image.items()}, **renamed}


def to_authors(weights: Mapping[str, Tensor], where: str, positions: int = 0) -> dict[str, Tensor]:
    """Our tensors under the authors' names, in open_clip's order; with `position_ids` of so many positions, if any.

    Raises UserError for one that has no place.
    """
    image = {name.removeprefix("image.vit."): value for name, value in weights.items() if name.startswith("image.vit.")}
    text = {name: value for name, value in weights.items() if name.startswith("text.encoder.")}
    known = {"log_scale", "text.proj.weight", *text, *(f"image.vit.{name}" for name in image)}
    if foreign := sorted(weights.keys() ^ known):
        raise _foreign(where, foreign[0])
    try:
        trunk = timm_vit.to_timm(image)
    except KeyError as error:
        raise _foreign(where, f"image.vit.{error.args[0]}") from None
    return {
        "logit_scale": weights["log_scale"],
        **{f"visual.trunk.{name}": tensor for name, tensor in trunk.items()},
        **({POSITION_IDS: position_ids(positions)} if positions else {}),
        **{f"text.transformer.{name.removeprefix('text.encoder.')}": tensor for name, tensor in text.items()},
        "text.proj.weight": weights["text.proj.weight"],
    }


def position_ids(positions: int) -> Tensor:
    """int64 [1, positions], as old versions of transformers saved them."""
    return torch.arange(positions)[None]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same names, shapes, types and bits."""
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _foreign(where: str, name: str) -> UserError:
    return UserError(
        f"{where}: {name} has no place in a LoTLIP with a plain ViT and a BERT-like encoder, or is missing; "
        "is it another model?"
    )
