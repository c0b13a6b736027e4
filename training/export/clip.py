"""A model that is a CLIP in all but its corner tokens, as transformers' CLIPModel."""

from typing import Any

from torch import Tensor

from lotlip_data.training.models.lotlip import LoTLIP


def is_clip(model: LoTLIP) -> bool:
    """Whether the model has CLIP's encoders with their projections, and no corner tokens.

    CLIPModel computes it, unless its logits have a bias.
    """
    image, text = model.towers.image, model.towers.text
    kinds = image.vit.config.model_type, text.encoder.config.model_type
    return (
        kinds == ("clip_vision_model", "clip_text_model")
        and image.proj is not None
        and not model.tokenizer.corner_tokens
    )


def clip_config(model: LoTLIP) -> dict[str, Any]:
    """The content of a CLIPModel's config.json."""
    from transformers import CLIPConfig

    image, text = model.towers.image, model.towers.text
    config = CLIPConfig(
        vision_config=image.vit.config.to_dict(),
        text_config=text.encoder.config.to_dict(),
        projection_dim=image.dim,
        architectures=["CLIPModel"],
        dtype="float32",
    )
    content: dict[str, Any] = config.to_dict()
    return content


def clip_weights(model: LoTLIP) -> dict[str, Tensor]:
    """The tensors under the names of a CLIPModel."""
    image, text = model.towers.image, model.towers.text
    assert image.proj is not None
    return {
        "logit_scale": model.towers.log_scale.detach(),
        "visual_projection.weight": image.proj.weight.detach(),
        "text_projection.weight": text.proj.weight.detach(),
        **{f"vision_model.{name}": value for name, value in _bare(image.vit, "vision_model.").items()},
        **{f"text_model.{name}": value for name, value in _bare(text.encoder, "text_model.").items()},
    }


def _bare(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """The tensors of an encoder without the prefix that some releases of transformers give them."""
    return {name.removeprefix(prefix): value for name, value in encoder.state_dict().items()}
