"""A folder of open_clip, which `create_model_and_transforms("local-dir:FOLDER")` and `get_tokenizer` load.

The image tower is timm's, if timm has it under a name. Any other plain ViT becomes open_clip's own VisionTransformer,
which has no bias in the patch embedding: the bias is added to the positions of the patches. Its projection is the
identity. The text tower is an encoder of transformers; its configuration is read from `hf_model_name`: the folder
itself, or the hub id under which it will be published.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lotlip_data.manifests.checkpoints import conversion
from lotlip_data.manifests.checkpoints.weights import write_weights
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation.models import OpenClipModel
from lotlip_data.training.export.base import Format
from lotlip_data.training.export.clip import clip_weights, is_clip
from lotlip_data.training.export.corners import without_corner_tokens
from lotlip_data.training.export.text_files import describe_tokenizer, split_at_full_stops, write_tokenizer
from lotlip_data.training.models import open_clip_names, timm_vit
from lotlip_data.training.models.lotlip import LoTLIP
from lotlip_data.training.models.open_clip_models import import_open_clip

logger = logging.getLogger(__name__)

WEIGHTS = "open_clip_model.safetensors"
_TEXT_TOWERS = ("bert", "roberta", "xlm-roberta")
"""Encoders of transformers that open_clip has in its table (hf_configs.py of open_clip 3.3) and that have [CLS]."""
_USE_ANOTHER = "use --format transformers or onnx"


class OpenClipFolder(Format):
    """A model of open_clip."""

    mark = "open_clip_config.json"
    tolerance = 1e-5

    def prepare(self, model: LoTLIP) -> LoTLIP:
        import_open_clip()
        if (smaller := without_corner_tokens(model)) is None:
            raise UserError(
                f"the features of texts depend on the model's {model.tokenizer.corner_tokens} register tokens, which "
                f"open_clip does not have; {_USE_ANOTHER}"
            )
        if is_clip(smaller):
            _require_clip_of_open_clip(smaller)
            return smaller
        text_type = model.towers.text.encoder.config.model_type
        if text_type not in _TEXT_TOWERS:
            raise UserError(
                f"open_clip has no text tower of model_type {text_type!r}, only {', '.join(_TEXT_TOWERS)} and whole "
                f"CLIPs; {_USE_ANOTHER}"
            )
        if model.tokenizer.form != "authors":
            raise UserError(
                f"the model's text form is {model.tokenizer.form}, but the tokenizers of open_clip cannot split texts "
                f"into sentences; {_USE_ANOTHER}"
            )
        _require_plain_vit(model)
        logger.warning(
            "open_clip's tokenizer makes a space of every white space and strips the text, before the full stops are "
            "looked for: only where each full stop between sentences has one space behind it, and the last one none, "
            "are its features those of the model"
        )
        return smaller

    def write(self, model: LoTLIP, folder: Path) -> None:
        content = describe_tokenizer(model.tokenizer)
        if is_clip(model):
            weights = open_clip_names.to_open_clip(clip_weights(model))
            # open_clip reads as many tokens as there are positions.
            weights["positional_embedding"] = weights["positional_embedding"][: model.tokenizer.context_length]
            write_weights(folder / WEIGHTS, weights | _logit_bias(model))
            write_tokenizer(folder, content, model.tokenizer)
            return
        text = {f"text.{_text_name(name)}": value for name, value in model.towers.text.state_dict().items()}
        image = {f"visual.{name}": value for name, value in _image_weights(model).items()}
        scale = {"logit_scale": model.towers.log_scale.detach()}
        write_weights(folder / WEIGHTS, {**scale, **_logit_bias(model), **image, **text})
        config = model.towers.text.encoder.config.to_dict()
        conversion.write_text(folder / "config.json", json.dumps(config, indent=2))
        separator = str(model.tokenizer.tokenizer.sep_token)
        write_tokenizer(folder, split_at_full_stops(content, separator), model.tokenizer)

    def describe(self, model: LoTLIP, home: str) -> dict[str, Any]:
        architecture = _clip_architecture(model, home) if is_clip(model) else _architecture(model, home)
        if _logit_bias(model):
            architecture["init_logit_bias"] = 0.0  # that there is one
        transform = model.transform
        preprocessing = {
            "size": transform.size,
            "mean": transform.mean,
            "std": transform.std,
            "interpolation": transform.interpolation,
            "resize_mode": transform.resize_mode,
        }
        return {"model_cfg": architecture, "preprocess_cfg": preprocessing}

    def load(self, folder: Path) -> "_Reader":
        return _Reader(OpenClipModel(f"local-dir:{folder}", "cpu"))


class _Reader:
    def __init__(self, model: OpenClipModel) -> None:
        self.model = model

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        return self.model.embed_images(images)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return self.model.embed_texts(texts).features


def _architecture(model: LoTLIP, home: str) -> dict[str, Any]:
    """A CustomTextCLIP with a text tower of transformers."""
    text = {
        "hf_model_name": home,
        "hf_tokenizer_name": home,
        "hf_proj_type": "linear",
        "hf_pooler_type": "cls_pooler",
        "context_length": model.tokenizer.context_length,
    }
    return {"embed_dim": model.towers.image.dim, "vision_cfg": _vision_config(model), "text_cfg": text}


def _clip_architecture(model: LoTLIP, home: str) -> dict[str, Any]:
    """A CLIP of open_clip's own."""
    image, text = model.towers.image.vit.config, model.towers.text.encoder.config
    text_settings = {
        "context_length": model.tokenizer.context_length,
        "vocab_size": text.vocab_size,
        "hf_tokenizer_name": home,
        "pool_type": "eos",
        "eos_id": model.towers.text.family.end_id(text),
        **_sizes(text),
        "heads": text.num_attention_heads,
    }
    vision = {
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        **_sizes(image),
        "head_width": image.hidden_size // image.num_attention_heads,
    }
    return {
        "embed_dim": model.towers.image.dim,
        "vision_cfg": vision,
        "text_cfg": text_settings,
        "quick_gelu": image.hidden_act == "quick_gelu",
    }


def _sizes(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }


def _require_clip_of_open_clip(model: LoTLIP) -> None:
    activations = {config.hidden_act for config in (model.towers.image.vit.config, model.towers.text.encoder.config)}
    if activations not in ({"gelu"}, {"quick_gelu"}):
        raise UserError(
            f"the towers compute {' and '.join(sorted(activations))}, and a CLIP of open_clip has gelu or quick_gelu "
            f"in both; {_USE_ANOTHER}"
        )


def _require_plain_vit(model: LoTLIP) -> None:
    config = model.towers.image.vit.config
    if config.model_type != "vit" or config.hidden_act != "gelu":
        raise UserError(
            f"the image tower is of model_type {config.model_type!r} with {getattr(config, 'hidden_act', None)!r}, and "
            f"only plain ViTs with gelu are written for open_clip; {_USE_ANOTHER}"
        )


def _logit_bias(model: LoTLIP) -> dict[str, Tensor]:
    """The bias of the logits under open_clip's name; empty if there is none."""
    bias = model.towers.logit_bias
    return {} if bias is None else {"logit_bias": bias.detach()}


def _text_name(name: str) -> str:
    """The name of a tensor in open_clip's text tower."""
    return name.replace("encoder.", "transformer.", 1) if name.startswith("encoder.") else name


def _timm_name(config: Any) -> str | None:
    """timm's name of a plain ViT, or None if timm has none for it."""
    import timm

    for size in timm_vit.SIZES:
        name = f"vit_{size}_patch{config.patch_size}_{config.image_size}"
        if timm.is_model(name):
            named = timm_vit.vit_config({"architecture": name}, name)
            settings = (
                *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
                *("layer_norm_eps", "hidden_act", "qkv_bias"),
            )
            if all(getattr(named, setting) == getattr(config, setting) for setting in settings):
                return name
    return None


def _vision_config(model: LoTLIP) -> dict[str, Any]:
    config = model.towers.image.vit.config
    if name := _timm_name(config):
        return {"timm_model_name": name, "timm_pool": "token", "timm_proj": "none", "image_size": config.image_size}
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        **_sizes(config),
        "head_width": config.hidden_size // config.num_attention_heads,
        "no_ln_pre": True,
    }


_OF_OPEN_CLIP = (
    ("blocks.", "transformer.resblocks."),
    ("attn.qkv.", "attn.in_proj_"),
    ("attn.proj.", "attn.out_proj."),
    ("norm1.", "ln_1."),
    ("norm2.", "ln_2."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)


def _image_weights(model: LoTLIP) -> dict[str, Tensor]:
    """The tensors of open_clip's image tower."""
    vit = model.towers.image.vit
    weights = timm_vit.to_timm(vit.state_dict())
    if _timm_name(vit.config):
        return {f"trunk.{name}": value for name, value in weights.items()}
    patch_bias = weights.pop("patch_embed.proj.bias")
    positions = weights.pop("pos_embed")[0].clone()
    positions[1:] += patch_bias
    renamed = {
        "class_embedding": weights.pop("cls_token")[0, 0],
        "positional_embedding": positions,
        "conv1.weight": weights.pop("patch_embed.proj.weight"),
        "ln_post.weight": weights.pop("norm.weight"),
        "ln_post.bias": weights.pop("norm.bias"),
        "proj": torch.eye(vit.config.hidden_size),
    }
    for name, value in weights.items():
        for timm_part, part in _OF_OPEN_CLIP:
            name = name.replace(timm_part, part)
        renamed[name] = value
    if not vit.config.qkv_bias:
        width = vit.config.hidden_size
        layers = range(vit.config.num_hidden_layers)
        renamed |= {f"transformer.resblocks.{layer}.attn.in_proj_bias": torch.zeros(3 * width) for layer in layers}
    return renamed
