"""Loads towers from hub ids and local folders, pre-trained or with fresh weights of the same configuration.

Image towers: the image encoders of transformers that pooling.py lists, and timm's plain ViTs, such as
timm/vit_base_patch16_224.augreg_in21k, which the authors' code uses. Text towers: any BERT-like encoder of
transformers.
"""

import copy
import json
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.checkpoints.weights import differences, read_weights
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.models import timm_vit
from lotlip_data.training.models.pooling import Pooling, check_features, pooling_of, without_masking
from lotlip_data.training.models.towers import ImageTower, make_encoder, make_vit, pooler_argument

TowerKind = Literal["image", "text"]

_POSITIONS = "embeddings.position_embeddings"

_IMAGES_AND_TEXTS = frozenset(("clip", "chinese_clip", "siglip"))
"""Model types of two towers. Of these the image tower is loaded."""


def load_image_tower(name: str, *, pretrained: bool = True, image_size: int | None = None) -> ImageTower:
    """Load an image tower, and try pre-trained ones on a few images.

    Args:
        name: A local folder or hub id.
        pretrained: Off: fresh weights of the configuration in config.json.
        image_size: Side of the images in pixels, a multiple of the patch size. Default: the tower's own. For another
            size the position embeddings are resized.

    Raises:
        UserError: There is no such tower, it does not fit the image size, or it makes no feature of the whole image.
    """
    where = f"image tower {name!r}"
    config = image_config(name)
    pooling = pooling_of(config, where)
    if not pretrained:
        return ImageTower(make_vit(_config_for_size(config, image_size, name), pooling), pooling)
    if timm_vit.is_timm(_read_config_json(name, "image") or {}):
        vit = vit_of_timm(_read_image_weights(name), config, where)
    else:
        vit = _load_pretrained(name, "image", config=config, **pooler_argument(config, pooling))
    tower = ImageTower(_resize_vit(vit, _config_for_size(config, image_size, name), pooling), pooling)
    check_features(tower, tower.vit.config.image_size, where)
    return tower


def image_config(name: str) -> Any:
    """The transformers configuration of an image tower (folder or hub id); of a CLIP-like model, its image half's.

    Raises UserError if there is none.
    """
    config = _read_config_json(name, "image")
    if config and timm_vit.is_timm(config):
        return timm_vit.vit_config(config, f"image tower {name!r}")
    config = _transformers_config(name, "image")
    config = without_masking(config.vision_config if config.model_type in _IMAGES_AND_TEXTS else config)
    _check_inputs(config, f"image tower {name!r}")
    return config


def _check_inputs(config: Any, where: str) -> None:
    """Raise UserError unless the tower takes square images of three channels. Sides that are pairs become numbers."""
    for side in ("image_size", "patch_size"):
        value = getattr(config, side, None)
        if isinstance(value, list | tuple):
            if len(set(value)) != 1:
                raise UserError(f"{where}: its {side} is {'×'.join(map(str, value))}; use a tower for square images")
            setattr(config, side, value[0])
    if getattr(config, "num_channels", 3) != 3:
        raise UserError(f"{where}: takes images of {config.num_channels} channels; use a tower for RGB images")


def load_text_encoder(name: str, *, pretrained: bool = True) -> Any:
    """Load a BERT-like encoder.

    Args:
        name: A local folder or hub id.
        pretrained: Off: fresh weights of the configuration in config.json. On: a pooler that the files lack (RoBERTa's
            do) has fresh weights.

    Raises:
        UserError: There is no such encoder, or its files lack a weight outside the pooler.
    """
    if not pretrained:
        return make_encoder(text_config(name))
    return _load_pretrained(name, "text", attn_implementation="sdpa")


def text_config(name: str) -> Any:
    """The transformers configuration of a text tower (folder or hub id). Raises UserError if there is none."""
    return _transformers_config(name, "text")


def vit_of_timm(weights: dict[str, Tensor], config: Any, where: str) -> Any:
    """The float32 ViTModel of timm's tensors. Raises UserError unless names and shapes match `config` exactly."""
    try:
        renamed = timm_vit.from_timm(weights)
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]} is not a tensor of timm's plain ViTs; use another tower") from None
    with torch.device("meta"):
        vit = make_vit(config)
    expected = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    if problems := differences(expected, {name: tuple(value.shape) for name, value in renamed.items()}):
        raise UserError(f"{where}: {'; '.join(problems)}; use config.json and weights of the same model")
    vit.to_empty(device="cpu").load_state_dict(renamed)
    return vit.eval()


def resize_positions(table: Tensor, old_grid: int, grid: int) -> Tensor:
    """Resize position embeddings to grid × grid patches, as timm does (bicubic, antialiased).

    Args:
        table: [1, P + old_grid², D], P prefix tokens (the class token) before the patches.
        old_grid: Patches per side in `table`.
        grid: Patches per side in the result.

    Returns:
        [1, P + grid², D]; the prefix tokens are unchanged.
    """
    prefix, patches = table.split([table.shape[1] - old_grid**2, old_grid**2], dim=1)
    square = patches.float().unflatten(1, (old_grid, old_grid)).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
    return torch.cat([prefix, square.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


def _config_for_size(config: Any, image_size: int | None, name: str) -> Any:
    """The configuration for another image size. Raises UserError if that is not a multiple of the patch size."""
    if image_size is None or image_size == config.image_size:
        return config
    patch_size = getattr(config, "patch_size", None)
    if patch_size and image_size % patch_size:
        raise UserError(f"image_size: {image_size} is not a multiple of {name}'s patch size of {patch_size} pixels")
    config = copy.deepcopy(config)
    config.image_size = image_size
    return config


def _resize_vit(vit: Any, config: Any, pooling: Pooling) -> Any:
    """The same encoder for the image size of `config`. Raises UserError if its positions are not one table."""
    if vit.config.image_size == config.image_size:
        return vit
    weights = vit.state_dict()
    if _POSITIONS not in weights:
        raise UserError(
            f"image_size: {type(vit).__name__} has no table of position embeddings to resize; leave image_size out"
        )
    grids = (size // config.patch_size for size in (vit.config.image_size, config.image_size))
    weights[_POSITIONS] = resize_positions(weights[_POSITIONS], *grids)
    resized = make_vit(config, pooling)
    expected = {name: tuple(value.shape) for name, value in resized.state_dict().items()}
    if problems := differences(expected, {name: tuple(value.shape) for name, value in weights.items()}):
        raise UserError(
            f"image_size: {type(vit).__name__} has further tables of positions ({'; '.join(problems)}); leave "
            "image_size out"
        )
    resized.load_state_dict(weights)
    return resized.eval()


def _read_image_weights(name: str) -> dict[str, Tensor]:
    for file in ("model.safetensors", "pytorch_model.bin"):
        if path := _local_file(name, file, "image"):
            return read_weights(path)
    raise UserError(f"image tower {name!r}: has neither model.safetensors nor pytorch_model.bin; download one of them")


def _read_config_json(name: str, kind: TowerKind) -> dict[str, Any] | None:
    """The content of config.json, or None if the tower has none. Raises UserError if it is not JSON."""
    path = _local_file(name, "config.json", kind)
    if path is None:
        return None
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{kind} tower {name!r}: config.json is not JSON ({error}); download it again") from error
    return config


def _local_file(name: str, file: str, kind: TowerKind) -> Path | None:
    """The local path of a tower's file, downloaded if needed. None if the tower has no such file."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise _unreadable(name, kind, error) from error
    return Path(path) if path else None


def _transformers_config(name: str, kind: TowerKind) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(name, kind, error) from error


def _load_pretrained(name: str, kind: TowerKind, **options: Any) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would show the reading of one file; the training reports its own progress
    try:
        model, loading = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise _unreadable(name, kind, error) from error
    optional = "pooler." if kind == "text" else ()  # an image tower is built with a pooler only if it is used
    if missing := sorted(key for key in loading["missing_keys"] if not key.startswith(optional)):
        raise UserError(
            f"{kind} tower {name!r}: its files lack {len(missing)} weights, such as {missing[0]}; use config.json and "
            "weights of the same model"
        )
    return model


def _unreadable(name: str, kind: TowerKind, error: Exception) -> UserError:
    if answer := hub.explain(error, name):
        return UserError(f"{kind} tower {answer}")
    return UserError(f"{kind} tower {name!r}: cannot load a model from there ({' '.join(str(error).split())})")
