"""The image processor of a LoTLIP: the pixels of its training, made with Pillow."""

from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images

from lotlip_data.training.data.pixels import PixelTransform


class LoTLIPImageProcessor(BaseImageProcessor):
    """Settings of preprocessor_config.json: those of `PixelTransform`, under `transform`."""

    model_input_names = ["pixel_values"]

    def __init__(self, transform: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.transform = transform or {}

    def preprocess(self, images: Any, return_tensors: str | None = None, **ignored: Any) -> BatchFeature:
        """`pixel_values` [N, 3, size, size] of one image or a list: of Pillow, or uint8 [height, width, 3]."""
        transform = PixelTransform(**self.transform)
        flat: Any = make_flat_list_of_images(self.fetch_images(images))
        flat = [image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image)) for image in flat]
        return BatchFeature({"pixel_values": [transform.pixels(image) for image in flat]}, tensor_type=return_tensors)
