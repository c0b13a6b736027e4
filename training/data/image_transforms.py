"""Images to tensors as in the image tower's pre-training, and random crops of them."""

import json
import math
import pathlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lotlip_data.training.data.pixels import PixelTransform

_MAX_ASPECT_RATIO = 4 / 3
"""A random crop has an aspect ratio from 3:4 to 4:3."""
_CROP_ATTEMPTS = 10


class ImageTransform(PixelTransform):
    """The transform of an image tower, which gives tensors."""

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """float32 [N, 3, size, size] of N images."""
        return torch.stack([self.normalize(self.square(image)) for image in images])

    def settings(self) -> dict[str, Any]:
        """The settings, as JSON holds them. The usual resize mode is not named, so that earlier releases read them."""
        settings = asdict(self)
        if self.resize_mode == "shortest":
            del settings["resize_mode"]
        return settings

    def normalize(self, image: Image.Image) -> Tensor:
        """float32 [3, size, size] of an RGB image of size × size pixels."""
        return torch.from_numpy(self.normalized(image))


def random_crop(
    image: Image.Image, transform: ImageTransform, scale: tuple[float, float], rng: np.random.Generator
) -> Image.Image:
    """A random crop of the image, resized to the square of the transform.

    It is drawn as torchvision's RandomResizedCrop draws it, which the authors' code uses with a scale of 0.9–1.0 and
    without a flip.

    Args:
        image: An RGB image.
        transform: Gives the size and the interpolation.
        scale: Smallest and largest area of the crop, as a share of the image.
        rng: Source of the position, area and aspect ratio.
    """
    width, height = image.size
    max_log_ratio = math.log(_MAX_ASPECT_RATIO)
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(-max_log_ratio, max_log_ratio))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(rng.integers(width - crop_width + 1)), int(rng.integers(height - crop_height + 1))
            break
    else:  # the image is too elongated: take the largest central crop with an allowed aspect ratio
        crop_width = min(width, round(height * _MAX_ASPECT_RATIO))
        crop_height = min(height, round(width * _MAX_ASPECT_RATIO))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
    crop = image.crop((left, top, left + crop_width, top + crop_height))
    return transform.resize(crop, transform.size, transform.size)


def load_transform(tower: str, size: int) -> ImageTransform:
    """The transform of an image tower's pre-training.

    Mean, std and interpolation come from transformers' preprocessor_config.json or from the pretrained_cfg in timm's
    config.json. A tower with neither gets 0.5, 0.5 and bicubic.

    Args:
        tower: A local folder or hub id.
        size: Side of the images in pixels.
    """
    if timm_config := _read_json(tower, "config.json").get("pretrained_cfg"):
        settings = {name: timm_config[name] for name in ("mean", "std", "interpolation") if name in timm_config}
    else:
        processor = _read_json(tower, "preprocessor_config.json")
        settings = {name: processor[f"image_{name}"] for name in ("mean", "std") if f"image_{name}" in processor}
        settings |= {"interpolation": "bilinear"} if processor.get("resample") == Image.Resampling.BILINEAR else {}
    return ImageTransform(size, **settings)


def _read_json(tower: str, name: str) -> dict[str, Any]:
    """A JSON file of a folder or hub id. Empty if there is no such file."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(tower, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return {}
    return dict(json.loads(pathlib.Path(path).read_text())) if path else {}
