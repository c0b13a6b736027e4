"""The protocol of an evaluation: what two results must share before their figures can be compared.

The protocol of a set is a flat object of texts and numbers. Its fields are those of `LABELS`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

LABELS = {
    "context_length": "context length",
    "resolution": "resolution",
    "resizing": "resizing",
    "normalisation": "normalisation",
    "text_form": "text form",
    "images": "images",
    "texts": "texts",
    "prompts": "prompts",
    "distractors": "distractors",
    "queries": "queries",
}
"""The fields of a protocol, as tables and messages call them."""
COUNTS = ("images", "texts", "prompts", "distractors", "queries")
"""Those fields of which a set has only some."""
NOT_STATED = "not stated"
Protocol = Mapping[str, Any]

_RESIZE_MODES = {
    "shortest": "shorter side, center crop",
    "longest": "longer side, padded",
    "squash": "both sides, stretched",
}


def describe_preprocessing(
    size: tuple[int, int], mode: str, interpolation: str, mean: Sequence[float], std: Sequence[float]
) -> dict[str, str]:
    """The fields of a protocol that the preprocessing of images decides. Equal preprocessing has equal texts.

    Args:
        size: Width and height of the image that the model sees, in pixels.
        mode: How an image gets this size: shortest, longest or squash, as open_clip calls them, or another text.
        interpolation: Such as bicubic.
        mean: What is subtracted from the channels in [0, 1]; empty without normalisation.
        std: What the channels are then divided by.
    """
    normalisation = f"mean {_channels(mean)}, std {_channels(std)}" if mean else "none"
    return {
        "resolution": f"{size[0]} x {size[1]}",
        "resizing": f"{_RESIZE_MODES.get(mode, mode)}, {interpolation}",
        "normalisation": normalisation,
    }


def open_clip_preprocessing(settings: Mapping[str, Any]) -> dict[str, str]:
    """What a protocol says of open_clip's preprocessing."""
    size = settings["size"]
    width, height = (size, size) if isinstance(size, int) else (size[1], size[0])
    return describe_preprocessing(
        (width, height), settings["resize_mode"], settings["interpolation"], settings["mean"], settings["std"]
    )


def transformers_preprocessing(settings: Mapping[str, Any]) -> dict[str, str]:
    """What a protocol says of the preprocessing of an image processor of transformers."""
    size = settings.get("size") or {}
    is_cropped = settings.get("do_center_crop") and settings.get("crop_size")
    final = settings["crop_size"] if is_cropped else size
    edge = size.get("shortest_edge", 0)
    width, height = final.get("width", edge), final.get("height", edge)
    if not settings.get("do_resize"):
        mode = "no resizing"
    elif edge:
        mode = "shortest" if is_cropped and edge == width == height else f"shorter side to {edge}"
    else:
        mode = "squash"
    mean, std = (
        (settings.get(name) or ()) if settings.get("do_normalize") else () for name in ("image_mean", "image_std")
    )
    resample = settings.get("resample")
    interpolation = Image.Resampling.BICUBIC if resample is None else Image.Resampling(resample)
    return describe_preprocessing((width, height), mode, interpolation.name.lower(), mean, std)


def _channels(values: Sequence[float]) -> str:
    """One number if all channels have the same."""
    numbers = [f"{value:.4g}" for value in values]
    return numbers[0] if len(set(numbers)) == 1 else " ".join(numbers)


def protocol_differences(protocols: Mapping[str, Protocol]) -> list[str]:
    """Each field in which the protocols of one set differ, with its values and the models that have them.

    Args:
        protocols: The protocol by model; an empty one if none is stated.
    """
    differences = []
    for field, label in LABELS.items():
        models_by_value: dict[str, list[str]] = {}
        for model, protocol in protocols.items():
            models_by_value.setdefault(str(protocol.get(field, NOT_STATED)), []).append(model)
        if len(models_by_value) > 1:
            values = (f"{value} ({', '.join(models)})" for value, models in models_by_value.items())
            differences.append(f"{label} {' / '.join(values)}")
    return differences
