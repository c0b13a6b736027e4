"""What ShareGPT4V's published weights are called in the Hugging Face LLaVA layout, and whether they are all there."""

import re
from typing import Any

STRAY_TOWER = "model.vision_tower."
"""Weights of a vision tower beside the language model's. ShareGPT4V's own loader ignores them too."""

TOKEN_ROWS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
"""The matrices with one row a token of the vocabulary."""

_PROJECTOR = {"model.mm_projector.0.": "linear_1.", "model.mm_projector.2.": "linear_2."}
_TOWER_PARTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
_OTHER_HALF = ("text_model.", "visual_projection.", "text_projection.", "logit_scale")


def language_name(name: str) -> str | None:
    """The hub's name of a tensor of ShareGPT4V's own files; None for what is left out on purpose.

    Left out: a stray vision tower, and the rotary frequencies that old versions of transformers saved with each layer.
    Raises KeyError for any other name.
    """
    if name.startswith(STRAY_TOWER) or name.endswith(".rotary_emb.inv_freq"):
        return None
    for prefix, linear in _PROJECTOR.items():
        if name.startswith(prefix):
            return f"multi_modal_projector.{linear}{name.removeprefix(prefix)}"
    if name == "lm_head.weight" or re.match(r"model\.(embed_tokens|layers|norm)\.", name):
        return f"language_model.{name}"
    raise KeyError(name)


def tower_name(name: str) -> str | None:
    """The hub's name of a tensor of the vision tower's files; None for what is left out on purpose.

    Left out: position ids, which are counted anew, and the text half of a whole CLIP. Raises KeyError for other names.
    """
    if name.endswith("embeddings.position_ids") or name.startswith(_OTHER_HALF):
        return None
    inner = name.removeprefix("vision_model.")  # which transformers 5 does not write
    if inner.startswith(_TOWER_PARTS):
        return f"vision_tower.vision_model.{inner}"
    raise KeyError(name)


def hub_name(parameter: str) -> str:
    """The name on the hub, which vLLM reads too, of a parameter of transformers' LlavaForConditionalGeneration."""
    for ours, hub in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if parameter.startswith(ours):
            return hub + parameter.removeprefix(ours)
    raise KeyError(parameter)


def model_shapes(model_class: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Name → shape of every parameter of a transformers model, which takes no memory: it is built on `meta`."""
    import torch
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, model_class)(config)
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def llava_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Name on the hub → shape of every weight of a LLaVA with this LlavaConfig."""
    return {hub_name(name): shape for name, shape in model_shapes("LlavaForConditionalGeneration", config).items()}
