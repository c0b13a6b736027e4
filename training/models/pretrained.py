"""Loads single towers from hub ids and local folders, pre-trained or with fresh weights of the same configuration.

Image towers: the image encoders of transformers that pooling.py lists, and timm's plain ViTs, such as
timm/vit_base_patch16_224.augreg_in21k, which the authors' code uses. Text towers: any BERT-like encoder of
transformers, ModernBERT, and those of CLIP and SigLIP. clip_checkpoints.py loads both towers of a CLIP.
"""

import copy
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.checkpoints.weights import differences, read_weights
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.models import timm_vit
from lotlip_data.training.models.pooling import Pooling, check_features, pooling_of, without_masking
from lotlip_data.training.models.positions import Stretch, resize_positions, stretch_positions
from lotlip_data.training.models.text_families import family_of
from lotlip_data.training.models.towers import ImageTower, make_encoder, make_vit, pooler_argument

Label = Literal["image tower", "text tower", "start_from"]
"""What a name stands for, at the beginning of an error message."""

_POSITIONS = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")
"""Names of a table of image positions: [1, P, D], and of CLIP and SigLIP [P, D]."""

_IMAGES_AND_TEXTS = frozenset(("clip", "chinese_clip", "siglip"))
"""Model types of two towers. Of these one is loaded."""


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
    if timm_vit.is_timm(_read_config_json(name, "image tower") or {}):
        vit = vit_of_timm(_read_image_weights(name), config, where)
    else:
        vit = load_pretrained(name, "image tower", config=config, **pooler_argument(config, pooling))
    tower = ImageTower(resize_vit(vit, image_size, pooling, name), pooling)
    check_features(tower, tower.vit.config.image_size, where)
    return tower


def image_config(name: str) -> Any:
    """The transformers configuration of an image tower (folder or hub id); of a CLIP-like model, its image half's.

    Raises UserError if there is none.
    """
    config = _read_config_json(name, "image tower")
    if config and timm_vit.is_timm(config):
        return timm_vit.vit_config(config, f"image tower {name!r}")
    config = transformers_config(name, "image tower")
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
    """Load a text encoder.

    Args:
        name: A local folder or hub id; of a CLIP-like model, its text half is loaded.
        pretrained: Off: fresh weights of the configuration in config.json. On: a pooler that the files lack (RoBERTa's
            do) has fresh weights.

    Raises:
        UserError: There is no such encoder, or its files lack a weight outside the pooler.
    """
    if not pretrained:
        return make_encoder(text_config(name))
    config = text_config(name)
    model_class = family_of(config.model_type).model_class()
    return load_pretrained(name, "text tower", model_class, config=config, attn_implementation="sdpa")


def text_config(name: str) -> Any:
    """The transformers configuration of a text tower (folder or hub id); of a CLIP-like model, its text half's.

    Raises UserError if there is none.
    """
    config = transformers_config(name, "text tower")
    return config.text_config if config.model_type in _IMAGES_AND_TEXTS else config


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


def resize_vit(vit: Any, image_size: int | None, pooling: Pooling, name: str) -> Any:
    """The same encoder for another image size; None is its own.

    Raises UserError if the size is not a multiple of the patch size, or the encoder's positions are not one table.
    """
    config = _config_for_size(vit.config, image_size, name)
    if vit.config.image_size == config.image_size:
        return vit
    weights = vit.state_dict()
    tables = [table for table in _POSITIONS if table in weights]
    if not tables:
        raise UserError(
            f"image_size: {type(vit).__name__} has no table of position embeddings to resize; leave image_size out"
        )
    old, new = (size // config.patch_size for size in (vit.config.image_size, config.image_size))
    table = weights[tables[0]]
    resized_table = resize_positions(table if table.ndim == 3 else table[None], old, new)
    weights[tables[0]] = resized_table.view(-1, table.shape[-1]) if table.ndim == 2 else resized_table
    resized = make_vit(config, pooling)
    expected = {name: tuple(value.shape) for name, value in resized.state_dict().items()}
    if problems := differences(expected, {name: tuple(value.shape) for name, value in weights.items()}):
        raise UserError(
            f"image_size: {type(vit).__name__} has further tables of positions ({'; '.join(problems)}); leave "
            "image_size out"
        )
    resized.load_state_dict(weights)
    return resized.eval()


def stretch_text_encoder(encoder: Any, positions: int, rule: Stretch) -> Any:
    """The same encoder with a longer table of positions.

    Args:
        encoder: A text encoder.
        positions: Positions of a text in the result.
        rule: How the table is stretched.

    Raises:
        UserError: The encoder has no table of positions, or one that is too short for the rule.
    """
    family = family_of(encoder.config.model_type)
    if family.position_table is None:
        raise UserError(f"stretch: {type(encoder).__name__} has no table of positions to stretch; leave stretch out")
    _, first = family.positions(encoder)
    config = copy.deepcopy(encoder.config)
    config.max_position_embeddings = positions + first
    name = f"{family.position_table}.weight"
    weights = encoder.state_dict()
    try:
        stretched = stretch_positions(weights[name][first:], positions, rule)
    except ValueError as error:
        raise UserError(str(error)) from None
    longer = make_encoder(config)
    longer.load_state_dict({**weights, name: torch.cat([weights[name][:first], stretched])})
    return longer.eval()


def _read_image_weights(name: str) -> dict[str, Tensor]:
    for file in ("model.safetensors", "pytorch_model.bin"):
        if path := local_file(name, file, "image tower"):
            return read_weights(path)
    raise UserError(f"image tower {name!r}: has neither model.safetensors nor pytorch_model.bin; download one of them")


def _read_config_json(name: str, label: Label) -> dict[str, Any] | None:
    """The content of config.json, or None if the tower has none. Raises UserError if it is not JSON."""
    path = local_file(name, "config.json", label)
    if path is None:
        return None
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{label} {name!r}: config.json is not JSON ({error}); download it again") from error
    return config


def local_file(name: str, file: str, label: Label) -> Path | None:
    """The local path of a tower's file, downloaded if needed. None if the tower has no such file."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise _unreadable(name, label, error) from error
    return Path(path) if path else None


def transformers_config(name: str, label: Label) -> Any:
    """The configuration of a hub id or local folder. Raises UserError if there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(name, label, error) from error


def load_pretrained(name: str, label: Label, model_class: Any = None, **options: Any) -> Any:
    """The float32 model of a hub id or local folder.

    Args:
        name: The hub id or folder.
        label: What the name stands for, for messages.
        model_class: The class of transformers that loads it. Default: AutoModel.
        options: Further arguments of its `from_pretrained`.

    Raises:
        UserError: There is no such model, or its files lack weights. A text tower's pooler may be missing.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would show the reading of one file; the training reports its own progress
    load = (model_class or AutoModel).from_pretrained
    try:
        model, loading = load(name, dtype=torch.float32, output_loading_info=True, **options)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise _unreadable(name, label, error) from error
    optional = "pooler." if label == "text tower" else ()  # an image tower is built with a pooler only if it is used
    if missing := sorted(key for key in loading["missing_keys"] if not key.startswith(optional)):
        raise UserError(
            f"{label} {name!r}: its files lack {len(missing)} weights, such as {missing[0]}; use config.json and "
            "weights of the same model"
        )
    return model


def _unreadable(name: str, label: Label, error: Exception) -> UserError:
    if answer := hub.explain(error, name):
        return UserError(f"{label} {answer}")
    return UserError(f"{label} {name!r}: cannot load a model from there ({' '.join(str(error).split())})")
