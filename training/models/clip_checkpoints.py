"""Loads a whole CLIP or SigLIP, so that a training starts from it: both encoders, their projections, the temperature,
the tokenizer and the preprocessing of images.

Checkpoints are read in the layouts in which they are published: those of transformers (CLIP, and SigLIP and SigLIP 2 at
a fixed resolution), and open_clip's (CLIP). A model of open_clip is renamed into one of transformers and tried on a few
inputs: both must compute the same features.
"""

import dataclasses
import re
import string
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.data.image_transforms import ImageTransform, load_transform
from lotlip_data.training.data.tokenizer import load_tokenizer
from lotlip_data.training.models import open_clip_names
from lotlip_data.training.models.open_clip_models import PREFIX, LoadedOpenClip, import_open_clip, load_open_clip
from lotlip_data.training.models.pooling import check_features
from lotlip_data.training.models.pretrained import Label, load_pretrained, local_file, resize_vit, transformers_config
from lotlip_data.training.models.towers import ImageTower

_LABEL: Label = "start_from"
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_TOLERANCE = 1e-4
"""Largest difference between the features of open_clip and of transformers, relative to the largest feature."""


@dataclass(frozen=True)
class ClipCheckpoint:
    """A pre-trained model of images and texts, taken apart."""

    image: ImageTower
    """With its projection, if it has one."""
    text_encoder: Any
    """CLIPTextModel or SiglipTextModel."""
    text_projection: Mapping[str, Tensor]
    """`weight` [D, E], and `bias` [D] of a SigLIP."""
    log_scale: float
    """The logarithm of the factor on cosine similarities."""
    logit_bias: float | None
    """The summand of the logits of a SigLIP."""
    tokenizer: Any
    """Of transformers."""
    transform: ImageTransform


def load_clip(name: str, *, image_size: int | None = None) -> ClipCheckpoint:
    """Load a CLIP or SigLIP.

    Args:
        name: A local folder or hub id in transformers' layout, or a name of open_clip: `open_clip:ViT-B-16/openai`,
            `open_clip:hf-hub:ORG/NAME` or `open_clip:local-dir:FOLDER`.
        image_size: Side of the images in pixels. Default: the model's own.

    Raises:
        UserError: There is no such model, it is of another kind, or its files lack weights.
    """
    if name.startswith(PREFIX):
        return _from_open_clip(name.removeprefix(PREFIX), image_size)
    if local_file(name, "config.json", _LABEL) is None and local_file(name, _OPEN_CLIP_CONFIG, _LABEL):
        layout = "local-dir" if Path(name).is_dir() else "hf-hub"
        raise UserError(f"{_LABEL} {name!r}: has open_clip's layout; write {PREFIX}{layout}:{name}")
    kind = transformers_config(name, _LABEL).model_type
    if kind not in ("clip", "siglip"):
        advice = "; of SigLIP 2, use a checkpoint of one resolution" if kind == "siglip2" else ""
        raise UserError(f"{_LABEL} {name!r}: is of model_type {kind!r}, and only clip and siglip are known{advice}")
    model = load_pretrained(name, _LABEL)
    transform = load_transform(name, model.config.vision_config.image_size)
    if kind == "siglip":  # published with both sides resized, and no crop
        transform = dataclasses.replace(transform, resize_mode="squash")
    return _take_apart(model, load_tokenizer(name), transform, image_size, name)


def _take_apart(
    model: Any, tokenizer: Any, transform: ImageTransform, image_size: int | None, name: str
) -> ClipCheckpoint:
    """The parts of a CLIPModel or SiglipModel. `transform` is that of its own image size."""
    projection = getattr(model, "visual_projection", None)
    vit = resize_vit(model.vision_model, image_size, "pooler", name)
    image = ImageTower(vit, "pooler", projection and projection.out_features)
    if image.proj is not None and projection is not None:
        image.proj.load_state_dict(projection.state_dict())
    check_features(image, vit.config.image_size, f"{_LABEL} {name!r}")
    head = model.text_projection if projection is not None else model.text_model.head
    bias = getattr(model, "logit_bias", None)
    return ClipCheckpoint(
        image=image,
        text_encoder=model.text_model,
        text_projection={name: value.detach().clone() for name, value in head.state_dict().items()},
        log_scale=model.logit_scale.item(),
        logit_bias=None if bias is None else bias.item(),
        tokenizer=tokenizer,
        transform=dataclasses.replace(transform, size=vit.config.image_size),
    )


def _from_open_clip(name: str, image_size: int | None) -> ClipCheckpoint:
    where = f"{_LABEL} {PREFIX}{name}"
    with _explained(where, name):
        loaded = load_open_clip(name, "cpu")
    try:
        model = _as_transformers(loaded.model.float())
        tokenizer = _tokenizer_of(loaded)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: only plain CLIPs and SigLIPs of open_clip can be read "
            f"({next(iter(str(error).splitlines()), type(error).__name__)}). Use the same model in transformers' layout"
        ) from error
    preprocessing = import_open_clip().get_model_preprocess_cfg(loaded.model)
    transform = ImageTransform(
        model.config.vision_config.image_size,
        tuple(preprocessing["mean"]),
        tuple(preprocessing["std"]),
        preprocessing.get("interpolation", "bicubic"),
        "squash" if preprocessing.get("resize_mode") == "squash" else "shortest",
    )
    return _take_apart(model, tokenizer, transform, image_size, name)


def _as_transformers(source: Any) -> Any:
    """The CLIPModel or SiglipModel that computes what a model of open_clip computes. Raises an error if none does."""
    model = _siglip_of(source) if hasattr(source.visual, "trunk") else _clip_of(source)
    model.load_state_dict(open_clip_names.to_transformers(source.state_dict()))
    _require_equal_features(source, model.eval())
    return model


def _clip_of(source: Any) -> Any:
    """A CLIPModel of the sizes of a CLIP of open_clip."""
    from transformers import CLIPConfig, CLIPModel

    visual, end = source.visual, source.vocab_size - 1
    config = CLIPConfig(
        vision_config={
            **_layer_sizes(visual.transformer),
            "image_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
        },
        text_config={
            **_layer_sizes(source.transformer),
            "vocab_size": source.vocab_size,
            "max_position_embeddings": len(source.positional_embedding),
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": 0,
        },
        projection_dim=source.text_projection.shape[1],
    )
    return CLIPModel(config)


def _siglip_of(source: Any) -> Any:
    """A SiglipModel of the sizes of a SigLIP of open_clip, whose image tower is timm's."""
    from transformers import SiglipConfig, SiglipModel

    trunk, text = source.visual.trunk, source.text
    block = trunk.blocks[0]
    config = SiglipConfig(
        vision_config={
            "hidden_size": trunk.embed_dim,
            "intermediate_size": block.mlp.fc1.out_features,
            "num_hidden_layers": len(trunk.blocks),
            "num_attention_heads": block.attn.num_heads,
            "layer_norm_eps": block.norm1.eps,
            "hidden_act": _activation(block.mlp.act),
            "image_size": trunk.patch_embed.img_size[0],
            "patch_size": trunk.patch_embed.patch_size[0],
        },
        text_config={
            **_layer_sizes(text.transformer),
            "vocab_size": text.vocab_size,
            "max_position_embeddings": len(text.positional_embedding),
            "projection_size": text.text_projection.out_features,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 1,
        },
    )
    return SiglipModel(config)


def _layer_sizes(transformer: Any) -> dict[str, Any]:
    """The sizes of a transformer of open_clip."""
    block = transformer.resblocks[0]
    return {
        "hidden_size": block.attn.embed_dim,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "layer_norm_eps": block.ln_1.eps,
        "hidden_act": _activation(block.mlp.gelu),
    }


def _activation(module: Any) -> str:
    """transformers' name of an activation. Raises KeyError for an unknown one."""
    kind = type(module).__name__
    tanh = getattr(module, "approximate", "none") == "tanh"
    return {
        "GELU": "gelu_pytorch_tanh" if tanh else "gelu",
        "GELUTanh": "gelu_pytorch_tanh",
        "QuickGELU": "quick_gelu",
    }[kind]


@torch.no_grad()
def _require_equal_features(source: Any, model: Any) -> None:
    """Raise ValueError unless both compute the same features of a few images and texts."""
    generator = torch.Generator().manual_seed(0)
    side, text = model.config.vision_config.image_size, model.config.text_config
    pixels = torch.randn(2, 3, side, side, generator=generator)
    ids = torch.randint(text.vocab_size - 2, (2, text.max_position_embeddings), generator=generator)
    if text.eos_token_id is not None:  # CLIP reads the token that ends a text, SigLIP the last one
        ids[0, 5:] = 0
        ids[0, 5] = ids[1, -1] = text.eos_token_id
    for kind, theirs, ours in (
        ("image", source.encode_image(pixels), model.get_image_features(pixels).pooler_output),
        ("text", source.encode_text(ids), model.get_text_features(ids).pooler_output),
    ):
        if (theirs - ours).abs().max() > _TOLERANCE * theirs.abs().max():
            raise ValueError(f"its {kind} features are not those of a plain CLIP")


def _tokenizer_of(loaded: LoadedOpenClip) -> Any:
    """The tokenizer of transformers that gives open_clip's token ids. Raises ValueError if there is none."""
    theirs = loaded.tokenize
    if hasattr(theirs, "tokenizer"):
        return _with_cleaning(theirs.tokenizer, theirs.clean_fn.__name__)
    from transformers import CLIPTokenizer

    ranks = theirs.bpe_ranks
    start, end = theirs.all_special_ids[:2]
    names = {theirs.decoder[start]: "<|startoftext|>", theirs.decoder[end]: "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in theirs.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=sorted(ranks, key=ranks.__getitem__))


def _with_cleaning(tokenizer: Any, cleaning: str) -> Any:
    """The tokenizer with open_clip's cleaning of texts, as far as `clean_text` does not do it.

    The cleaning becomes a part of the tokenizer's own file, so that a saved model needs nothing else.
    """
    from tokenizers import Regex
    from tokenizers.normalizers import Lowercase, Replace, Sequence, Strip
    from transformers import PreTrainedTokenizerFast

    punctuation = Regex(f"[{re.escape(string.punctuation.replace('_', ''))}]")
    canonical = [Replace("_", " "), Replace(punctuation, ""), Lowercase(), Replace(Regex(r"\s+"), " "), Strip()]
    known: dict[str, list[Any]] = {
        "_clean_whitespace": [],
        "_clean_lower": [Lowercase()],
        "_clean_canonicalize": canonical,
    }
    steps = known[cleaning]
    if steps and not getattr(tokenizer, "is_fast", False):
        raise ValueError("its tokenizer is not a fast one")
    if not steps:
        return tokenizer
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        steps = [*steps, backend.normalizer]
    backend.normalizer = Sequence(steps)
    # A class of its own would make the normaliser anew when it is loaded.
    options = {"padding_side": tokenizer.padding_side, **tokenizer.special_tokens_map}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


@contextmanager
def _explained(where: str, name: str) -> Iterator[None]:
    """Turn the errors of open_clip into UserErrors of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # open_clip raises errors of any type for files of unknown origin
        answer = hub.explain(error, name)
        reason = str(answer) if answer else f"cannot be loaded ({next(iter(str(error).splitlines()), '')})"
        raise UserError(f"{where}: {reason}") from error
