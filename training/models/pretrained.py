"""Towers from hub ids and local folders, pre-trained or with fresh weights of the same configuration.

Image towers: any ViT of transformers, and timm's plain ViTs, such as the paper's
timm/vit_base_patch16_224.augreg_in21k. Text towers: any BERT-like encoder of transformers.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lotlip_data.manifests.checkpoints.weights import differences, read_weights
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.models import timm_vit
from lotlip_data.training.models.towers import ImageTower, make_encoder, make_vit, without_pooler

POSITIONS = "embeddings.position_embeddings"


def load_image_tower(name: str, *, pretrained: bool = True, image_size: int | None = None) -> ImageTower:
    """The ViT of a local folder or hub id; with `pretrained` off, a fresh one of its config.json.

    image_size: pixels of a side, a multiple of the patch size; the tower's own by default. For another one, position
    embeddings are resized. Raises UserError where there is no such tower.
    """
    config = image_config(name)
    if not pretrained:
        return ImageTower(make_vit(_sized(config, image_size, name)))
    if timm_vit.is_timm(_read_config(name, "image") or {}):
        vit = vit_of_timm(_weights(name), config, f"image tower {name!r}")
    else:
        vit = _pretrained(name, "image", **without_pooler(config))
    return ImageTower(_resized(vit, _sized(config, image_size, name)))


def image_config(name: str) -> Any:
    """The configuration of transformers of an image tower, given as a folder or hub id. Raises UserError."""
    found = _read_config(name, "image")
    if found and timm_vit.is_timm(found):
        return timm_vit.vit_config(found, f"image tower {name!r}")
    return _config(name, "image")


def load_text_encoder(name: str, *, pretrained: bool = True) -> Any:
    """The BERT-like encoder of a local folder or hub id; with `pretrained` off, a fresh one of its config.json.

    A pooler that the files lack (RoBERTa's do) starts fresh. Raises UserError where there is no such encoder, or the
    files lack anything else of it.
    """
    if not pretrained:
        return make_encoder(text_config(name))
    return _pretrained(name, "text", attn_implementation="sdpa")


def text_config(name: str) -> Any:
    """The configuration of transformers of a text tower, given as a folder or hub id. Raises UserError."""
    return _config(name, "text")


def vit_of_timm(weights: dict[str, Tensor], config: Any, where: str) -> Any:
    """The ViTModel of timm's tensors, in float32. Raises UserError unless they are those of `config`, all of them."""
    try:
        renamed = timm_vit.from_timm(weights)
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]} belongs to no plain ViT of timm; use another tower") from None
    with torch.device("meta"):
        vit = make_vit(config)
    expected = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    if problems := differences(expected, {name: tuple(value.shape) for name, value in renamed.items()}):
        raise UserError(f"{where}: {'; '.join(problems)}; fetch config.json and weights that belong together")
    vit.to_empty(device="cpu").load_state_dict(renamed)
    return vit.eval()


def resize_positions(table: Tensor, old_grid: int, grid: int) -> Tensor:
    """Position embeddings [1, P + old_grid², D] for grid × grid patches, as timm resizes them (bicubic, antialiased).

    The P in front, the class token's, stay as they are.
    """
    first, patches = table.split([table.shape[1] - old_grid**2, old_grid**2], dim=1)
    square = patches.float().unflatten(1, (old_grid, old_grid)).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
    return torch.cat([first, square.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


def _sized(config: Any, image_size: int | None, name: str) -> Any:
    """The configuration for images of another size. Raises UserError where that is no whole number of patches."""
    if image_size is None or image_size == config.image_size:
        return config
    if image_size % config.patch_size:
        raise UserError(f"image_size: {image_size} is no multiple of {name}'s patches of {config.patch_size} pixels")
    config = copy.deepcopy(config)
    config.image_size = image_size
    return config


def _resized(vit: Any, config: Any) -> Any:
    """The same ViT for the image size of `config`."""
    if vit.config.image_size == config.image_size:
        return vit
    weights = vit.state_dict()
    if POSITIONS not in weights:
        raise UserError(
            f"image_size: {type(vit).__name__} has no table of positions that could be resized; leave image_size out"
        )
    grids = (size // config.patch_size for size in (vit.config.image_size, config.image_size))
    weights[POSITIONS] = resize_positions(weights[POSITIONS], *grids)
    resized = make_vit(config)
    resized.load_state_dict(weights)
    return resized.eval()


def _weights(name: str) -> dict[str, Tensor]:
    for file in ("model.safetensors", "pytorch_model.bin"):
        if path := _file(name, file, "image"):
            return read_weights(path)
    raise UserError(f"image tower {name!r}: there is neither model.safetensors nor pytorch_model.bin; fetch one too")


def _read_config(name: str, which: str) -> dict[str, Any] | None:
    """What config.json holds; None where there is none. Raises UserError where it is not JSON."""
    path = _file(name, "config.json", which)
    if path is None:
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{which} tower {name!r}: config.json is not JSON ({error}); fetch it again") from error
    return found


def _file(name: str, file: str, which: str) -> Path | None:
    """The local path of a tower's file, fetched if need be; None where the tower has none."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise _unreadable(name, which, error) from error
    return Path(path) if path else None


def _config(name: str, which: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(name, which, error) from error


def _pretrained(name: str, which: str, **options: Any) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for reading one small file; the training tells its own progress
    try:
        model, found = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise _unreadable(name, which, error) from error
    if missing := sorted(key for key in found["missing_keys"] if not key.startswith("pooler.")):
        raise UserError(
            f"{which} tower {name!r}: {len(missing)} weights are not in its files, such as {missing[0]}; fetch "
            "config.json and weights that belong together"
        )
    return model


def _unreadable(name: str, which: str, error: Exception) -> UserError:
    return UserError(f"{which} tower {name!r}: no model can be read there ({error})")
