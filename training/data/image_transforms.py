"""Images to pixels as in the image tower's pre-training, with Pillow and numpy alone.

timm's crop_pct (0.9 for the paper's towers) is ignored: the authors' code evaluates with the whole shorter side.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_MAX_ASPECT_RATIO = 4 / 3
"""A random crop has an aspect ratio from 3:4 to 4:3."""
_CROP_ATTEMPTS = 10


ResizeMode = Literal["shortest", "squash"]


@dataclass(frozen=True)
class ImageTransform:
    """Resizes the shorter side to `size`, crops the center and normalizes, with exactly timm's pixels.

    With `resize_mode` squash it resizes both sides to `size` instead, as a SigLIP was trained.

    Normalization is (x − mean) / std of values in [0, 1]. The authors' code uses 0.5 for both, and bicubic resizing.
    """

    size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    resize_mode: ResizeMode = "shortest"

    def __post_init__(self) -> None:
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation: {self.interpolation!r} is not one of {', '.join(_INTERPOLATIONS)}")
        if self.resize_mode not in get_args(ResizeMode):
            raise ValueError(f"resize_mode: {self.resize_mode!r} is not one of {', '.join(get_args(ResizeMode))}")
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))

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
        pixels = np.asarray(image).astype(np.float32) / 255
        normalized = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(normalized).permute(2, 0, 1).contiguous()

    def resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """The image at `width` × `height` pixels, with this transform's interpolation."""
        return image.resize((width, height), _INTERPOLATIONS[self.interpolation])

    def square(self, image: Image.Image) -> Image.Image:
        """The image as RGB, size × size pixels: its center after its shorter side is resized, or all of it squashed."""
        image = image.convert("RGB")
        width, height = image.size
        if (width, height) == (self.size, self.size):
            return image
        if self.resize_mode == "squash":
            return self.resize(image, self.size, self.size)
        shorter = min(width, height)
        width, height = self.size * width // shorter, self.size * height // shorter
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return self.resize(image, width, height).crop((left, top, left + self.size, top + self.size))


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
