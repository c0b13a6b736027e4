"""Pictures into pixels, as the image tower's pre-training had them; Pillow and numpy alone."""

import json
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class ImageTransform:
    """Shorter side to `size` (bicubic), centre crop, and (x − mean) / std of values in [0, 1]."""

    size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """float32 [N, 3, size, size]."""
        pixels = np.stack([np.asarray(self._crop(image)) for image in images]).astype(np.float32) / 255
        normalised = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(normalised).permute(0, 3, 1, 2).contiguous()

    def _crop(self, image: Image.Image) -> Image.Image:
        image = image.convert("RGB")
        width, height = image.size
        if (width, height) == (self.size, self.size):
            return image
        scale = self.size / min(width, height)
        width, height = max(self.size, round(width * scale)), max(self.size, round(height * scale))
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        return image.crop((left, top, left + self.size, top + self.size))


def transform_of(tower: str, size: int) -> ImageTransform:
    """The transform of an image tower (folder or hub id): mean and std from its preprocessor_config.json, else 0.5."""
    settings = _processor(tower)
    return ImageTransform(size, *(tuple(settings.get(name, (0.5,) * 3)) for name in ("image_mean", "image_std")))


def _processor(tower: str) -> dict[str, Any]:
    from transformers.utils.hub import cached_file

    name = "preprocessor_config.json"
    try:
        path = cached_file(tower, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return {}
    return dict(json.loads(pathlib.Path(path).read_text())) if path else {}
