"""Pictures into pixels, as the image tower's pre-training had them; Pillow and numpy alone.

timm's crop_pct (0.9 for the paper's towers) is not followed: the authors' code evaluates with the whole shorter side.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_LOG_RATIO = math.log(4 / 3)  # sides of a random crop are 3:4 to 4:3


@dataclass(frozen=True)
class ImageTransform:
    """Shorter side to `size`, centre crop, and (x − mean) / std of values in [0, 1]; pixel for pixel as timm."""

    size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation: no {self.interpolation!r}; one of {', '.join(_INTERPOLATIONS)}")
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """float32 [N, 3, size, size]."""
        return torch.stack([self.normalise(self.centre_crop(image)) for image in images])

    def normalise(self, image: Image.Image) -> Tensor:
        """float32 [3, size, size] of an RGB image that has that size."""
        pixels = np.asarray(image).astype(np.float32) / 255
        normalised = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(normalised).permute(2, 0, 1).contiguous()

    def resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """The image at that size, with this transform's interpolation."""
        return image.resize((width, height), _INTERPOLATIONS[self.interpolation])

    def centre_crop(self, image: Image.Image) -> Image.Image:
        """RGB, size × size: the middle of the image whose shorter side is `size`."""
        image = image.convert("RGB")
        width, height = image.size
        if (width, height) == (self.size, self.size):
            return image
        shorter = min(width, height)
        width, height = self.size * width // shorter, self.size * height // shorter
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return self.resize(image, width, height).crop((left, top, left + self.size, top + self.size))


def random_crop(
    image: Image.Image, transform: ImageTransform, scale: tuple[float, float], rng: np.random.Generator
) -> Image.Image:
    """A crop of random area (a share of the image's within `scale`) and side ratio, at random, resized to the square.

    As torchvision's RandomResizedCrop draws it, which the authors' code uses with a scale of 0.9–1.0, and no flip.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(-_LOG_RATIO, _LOG_RATIO))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
            break
    else:  # an image too long for such a crop: the largest in its middle whose sides' ratio is allowed
        wide, high = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - wide) // 2, (height - high) // 2
    return transform.resize(image.crop((left, top, left + wide, top + high)), transform.size, transform.size)


def transform_of(tower: str, size: int) -> ImageTransform:
    """The transform of an image tower (folder or hub id): mean, std and interpolation as it was pre-trained.

    From transformers' preprocessor_config.json or the pretrained_cfg in timm's config.json; without, 0.5 and bicubic.
    """
    if found := _json(tower, "config.json").get("pretrained_cfg"):
        settings = {name: found[name] for name in ("mean", "std", "interpolation") if name in found}
    else:
        found = _json(tower, "preprocessor_config.json")
        settings = {name: found[f"image_{name}"] for name in ("mean", "std") if f"image_{name}" in found}
        settings |= {"interpolation": "bilinear"} if found.get("resample") == Image.Resampling.BILINEAR else {}
    return ImageTransform(size, **settings)


def _json(tower: str, name: str) -> dict[str, Any]:
    """A JSON file of a folder or hub id; empty where there is none."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(tower, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return {}
    return dict(json.loads(pathlib.Path(path).read_text())) if path else {}
