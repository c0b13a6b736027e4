"""How an image tower's output becomes one feature: as the tower was trained, by its architecture.

Most ViTs are trained on their class token. Others have an attention head (SigLIP, AIMv2), a mean over patches (I-JEPA)
or a normalized mean (BEiT, Swin, ConvNeXt). Their first token is one patch of the image, which is no image feature. An
architecture that is not listed here is refused.

Shapes: N images, L tokens, D width of a feature.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lotlip_data.manifests.errors import UserError

Pooling = Literal["class_token", "pooler", "patch_mean"]
"""`class_token`: token 0 after the last norm. `pooler`: the model's own pooled output, which includes a trained head or
norm. `patch_mean`: the mean of all tokens, of a model without a class token."""

POOLINGS: dict[str, Pooling] = {
    "vit": "class_token",
    "deit": "class_token",
    "dinov2": "class_token",
    "dinov2_with_registers": "class_token",
    "dinov3_vit": "class_token",
    "vit_msn": "class_token",
    "vit_mae": "class_token",
    "clip_vision_model": "pooler",
    "chinese_clip_vision_model": "pooler",
    "mlcd_vision_model": "pooler",
    "siglip_vision_model": "pooler",
    "aimv2_vision_model": "pooler",
    "pixio": "pooler",
    "beit": "pooler",
    "data2vec-vision": "pooler",
    "swin": "pooler",
    "swinv2": "pooler",
    "convnext": "pooler",
    "convnextv2": "pooler",
    "dinov3_convnext": "pooler",
    "ijepa": "patch_mean",
}
"""Pooling by `model_type`."""

_CLASS_TOKEN_FIRST = frozenset(("clip_vision_model", "chinese_clip_vision_model", "mlcd_vision_model"))
"""Model types whose own pooling reads the class token, token 0."""

MAX_NOISE = 1e-4
"""Largest difference between the features of one image, relative to them."""

MIN_EFFECT = 2e-6
"""Smallest relative difference that a quarter of the image makes: more than float32's rounding."""


def pooling_of(config: Any, where: str) -> Pooling:
    """The pooling of a tower with this configuration of transformers.

    Raises:
        UserError: The architecture is not known, or lacks the head with which it is pooled. `where` begins the message.
    """
    model_type = config.model_type
    if model_type not in POOLINGS:
        raise UserError(
            f"{where}: it is not known how model_type {model_type!r} makes one feature of an image; use one of "
            f"{', '.join(sorted(POOLINGS))}"
        )
    if not (getattr(config, "vision_use_head", True) and getattr(config, "use_head", True)):
        raise UserError(f"{where}: has no pooling head (vision_use_head or use_head is false); use a tower with one")
    return POOLINGS[model_type]


def check_pooling(name: str) -> Pooling:
    """The pooling of this name. Raises UserError for an unknown one."""
    if name not in get_args(Pooling):
        raise UserError(f"the model's pooling {name!r} is unknown; known are {', '.join(get_args(Pooling))}")
    return name  # type: ignore[return-value]


def reads_class_token(pooling: Pooling, config: Any) -> bool:
    """Whether the feature is computed from token 0 alone, so that its attention shows where the feature comes from."""
    return pooling == "class_token" or config.model_type in _CLASS_TOKEN_FIRST


def pool(outputs: Any, pooling: Pooling) -> Tensor:
    """Features [N, D] of a model's outputs."""
    features: Tensor
    if pooling == "pooler":
        features = outputs.pooler_output
    elif pooling == "patch_mean":
        features = outputs.last_hidden_state.mean(dim=1)
    else:
        features = outputs.last_hidden_state[:, 0]
    return features


def without_masking(config: Any) -> Any:
    """The configuration with a masked autoencoder's random masking turned off; any other one unchanged."""
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    return config


def unmasked_inputs(config: Any, pixels: Tensor) -> dict[str, Tensor]:
    """Arguments that keep the patches of a masked autoencoder in order, so that its features never vary; else none."""
    if config.model_type != "vit_mae" or config.mask_ratio:
        return {}
    patches = (pixels.shape[-1] // config.patch_size) * (pixels.shape[-2] // config.patch_size)
    return {"noise": torch.arange(patches, dtype=torch.float32, device=pixels.device).expand(len(pixels), -1)}


@torch.no_grad()
def check_features(tower: nn.Module, image_size: int, where: str) -> None:
    """Try the tower on a few images: a feature must be finite, repeatable, and depend on every part of the image.

    Args:
        tower: Computes features [N, D] of pixels [N, 3, height, width]; in evaluation mode.
        image_size: Side of its images in pixels.
        where: The beginning of an error message.

    Raises:
        UserError: A feature is not one of the whole image.
    """
    image = torch.randn(3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    half = image_size // 2
    quarters = [(slice(0, half), slice(0, half)), (slice(0, half), slice(half, None))]
    quarters += [(slice(half, None), columns) for _, columns in quarters]
    without_quarter = image.repeat(len(quarters), 1, 1, 1)
    for index, (rows, columns) in enumerate(quarters):
        without_quarter[index, :, rows, columns] = 0
    features = tower(torch.cat([image[None], image[None], without_quarter])).float()
    again = tower(image[None]).float()
    if not features.isfinite().all() or not features[0].any():
        raise UserError(f"{where}: its features are zero or not finite; its weights are damaged")
    size = features[0].norm()
    if max((features[1] - features[0]).norm(), (again[0] - features[0]).norm()) > MAX_NOISE * size:
        raise UserError(f"{where}: gives one image different features at each call; use another tower")
    if min((changed - features[0]).norm() for changed in features[2:]) <= MIN_EFFECT * size:
        raise UserError(f"{where}: its feature does not depend on the whole image; use another tower")
