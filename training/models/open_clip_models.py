"""Models of open_clip by the names that the project gives them, without the prefix `open_clip:`.

ViT-B-16/openai            an open_clip model and the tag of its published weights, or a file of weights
hf-hub:ORG/NAME            configuration and weights of a hub id
local-dir:FOLDER           those of a folder
"""

import difflib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lotlip_data.manifests.errors import UserError

logger = logging.getLogger(__name__)

PREFIX = "open_clip:"
"""Begins the names of open_clip's models."""


@dataclass(frozen=True)
class LoadedOpenClip:
    """A model of open_clip in evaluation mode, and what makes its inputs."""

    model: Any
    transform: Any
    tokenize: Any
    quick_gelu: bool
    """Whether QuickGELU was set, which the model's name does not say."""


def load_open_clip(name: str, device: str) -> LoadedOpenClip:
    """Load a model. Raises UserError for a name without weights; other errors are open_clip's."""
    open_clip = import_open_clip()
    model, weights = (name, None) if _is_folder(name) else split_name(name)
    quick_gelu = weights is not None and _needs_quick_gelu(model, weights)
    loaded = open_clip.create_model_and_transforms(
        model, pretrained=weights, device=device, force_quick_gelu=quick_gelu
    )
    return LoadedOpenClip(loaded[0].eval(), loaded[2], open_clip.get_tokenizer(model), quick_gelu)


def missing_weights(name: str) -> str | None:
    """The hub id of the weights that open_clip downloads for a model; None if they are on this machine.

    Raises:
        UserError: open_clip knows no such model or no such weights of it, or is not installed.
    """
    open_clip = import_open_clip()
    from huggingface_hub import try_to_load_from_cache

    if name.startswith("local-dir:"):
        return None
    files: tuple[str, ...]
    if name.startswith("hf-hub:"):
        files, repository = ("open_clip_config.json",), name.removeprefix("hf-hub:")
    else:
        model, weights = split_name(name)
        if model not in (models := open_clip.list_models()):
            nearest = difflib.get_close_matches(model, models, 3)
            suggestion = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
            raise UserError(f"{PREFIX}{name}: open_clip has no model {model!r}{suggestion}")
        tag = open_clip.get_pretrained_cfg(model, weights)
        if not tag and not Path(weights).exists():
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
            raise UserError(f"{PREFIX}{name}: {weights!r} is neither a file nor a tag of {model}; its tags are {tags}")
        files = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        repository = "/".join((tag or {}).get("hf_hub", "").split("/")[:2])
    is_cached = any(isinstance(try_to_load_from_cache(repository, file), str) for file in files if repository)
    return None if is_cached else repository or None


def import_open_clip() -> Any:
    """The package. Raises UserError if it is not installed."""
    try:
        import open_clip
    except ImportError:
        raise UserError("open_clip is not installed; pip install open-clip-torch==3.3.0") from None
    return open_clip


def split_name(name: str) -> tuple[str, str]:
    """The model and its weights. Raises UserError if there are no weights: the model would be random."""
    model, slash, weights = name.partition("/")
    if not (slash and weights):
        raise UserError(
            f"{PREFIX}{name}: names no weights, and without weights the model would be random; "
            f"write {PREFIX}{model}/TAG (see open_clip.list_pretrained()) or {PREFIX}{model}/FILE"
        )
    return model, weights


def _is_folder(name: str) -> bool:
    return name.startswith(("hf-hub:", "local-dir:"))


def _needs_quick_gelu(model: str, weights: str) -> bool:
    """Whether the weights were trained with QuickGELU although open_clip's model of that name computes GELU.

    The tag says so, or the configuration beside a file of weights. Of any other file nothing is known, and the model's
    name decides: ViT-B-16-quickgelu is ViT-B-16 with QuickGELU.
    """
    import open_clip

    model_name = model.replace("/", "-")
    if (open_clip.get_model_config(model_name) or {}).get("quick_gelu", False):
        return False
    if tag := open_clip.get_pretrained_cfg(model_name, weights):
        return bool(tag.get("quick_gelu", False))
    try:
        published = json.loads(Path(weights).with_name("open_clip_config.json").read_text())["model_cfg"]
        return bool(published.get("quick_gelu", False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        if f"{model_name}-quickgelu" in open_clip.list_models():
            logger.warning(f"{PREFIX}{model}/{weights}: computed with GELU; OpenAI's weights need {model}-quickgelu")
        return False
