"""What every engine does to an image before its image processor sees it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from lotlip_data.captioners.base import CaptionError

MAX_ASPECT_RATIO = 50
"""Resizing the short side of a more elongated image to the vision tower's input size would take gigabytes."""


def check_shape(image: Image.Image) -> None:
    """Raise CaptionError if an image is empty or too elongated."""
    short, long = sorted(image.size)
    if short == 0 or long > MAX_ASPECT_RATIO * short:
        raise CaptionError(f"{image.width}×{image.height} pixels: one side is over {MAX_ASPECT_RATIO} times the other")


@contextmanager
def image_errors(failure: str) -> Iterator[None]:
    """Raise what goes wrong with one image as a CaptionError that begins with `failure`."""
    try:
        yield
    except MemoryError:  # the machine's failure, not the image's
        raise
    except Exception as error:  # Pillow decodes lazily; it and the processors raise many types
        raise CaptionError(f"{failure}: {type(error).__name__}: {error}") from error


def fitted(image: Image.Image, fit: str, image_processor: Any) -> Image.Image:
    """The image in RGB, made square if `fit` says so.

    Args:
        image: Any size and mode.
        fit: A captioner's `image_fit`.
        image_processor: The checkpoint's, whose mean colour is that of the padding.
    """
    image = image.convert("RGB")
    if fit == "checkpoint" or image.width == image.height:
        return image
    if fit == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))
    mean = getattr(image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
    canvas = Image.new("RGB", (max(image.size),) * 2, tuple(int(255 * value) for value in mean))
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    return canvas
