"""Images to pixels with Pillow and numpy alone, as in the image tower's pre-training.

timm's crop_pct (0.9 for the paper's towers) is ignored: the authors' code evaluates with the whole shorter side.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

ResizeMode = Literal["shortest", "squash"]

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class PixelTransform:
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
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation: {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}")
        if self.resize_mode not in get_args(ResizeMode):
            raise ValueError(f"resize_mode: {self.resize_mode!r} is not one of {', '.join(get_args(ResizeMode))}")
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))

    def pixels(self, image: Image.Image) -> Any:
        """float32 [3, size, size], a numpy array, of an image of any size."""
        return self.normalized(self.square(image))

    def normalized(self, image: Image.Image) -> Any:
        """float32 [3, size, size], a numpy array, of an RGB image of size × size pixels."""
        values = np.asarray(image).astype(np.float32) / 255
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """The image at `width` × `height` pixels, with this transform's interpolation."""
        return image.resize((width, height), INTERPOLATIONS[self.interpolation])

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
