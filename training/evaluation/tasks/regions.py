"""Regions of pictures: the rectangles that evaluation sets with boxes compare with captions."""

from typing import NamedTuple

from PIL import Image

from lotlip_data.training.evaluation.tasks.files import TaskDataError, read_image


class Box(NamedTuple):
    """The columns `left` to `right` and the rows `top` to `bottom` of a picture in pixels, without the last ones.

    It may reach over the edges of the picture, where it is cut.
    """

    left: int
    top: int
    right: int
    bottom: int
    picture_size: tuple[int, int] | None = None
    """The picture's width and height, as the file that has the box says; None if it says nothing."""


def read_region(path: str, box: Box | None, source: str) -> Image.Image | None:
    """Read a region of a picture as RGB.

    Args:
        path: The picture.
        box: The region; None for the whole picture.
        source: The file that has the box, and the position in it; for messages.

    Returns:
        The region; None if the file is not an image.

    Raises:
        TaskDataError: If the picture does not exist, has another size than the box is for, or has no part in the box.
    """
    image = read_image(path)
    if image is None or box is None:
        return image
    if box.picture_size not in (None, image.size):
        raise TaskDataError(
            f"{path} has {_pixels(image.size)}, but the box of {source} is for {_pixels(box.picture_size)}; take the "
            "picture as published, not resized"
        )
    left, top = max(0, box.left), max(0, box.top)
    right, bottom = min(image.width, box.right), min(image.height, box.bottom)
    if left >= right or top >= bottom:
        raise TaskDataError(
            f"{source}: the box with the corners ({box.left}, {box.top}) and ({box.right}, {box.bottom}) has no pixel "
            f"of {path}, which has {_pixels(image.size)}; download the file and the picture again"
        )
    return image.crop((left, top, right, bottom))


def _pixels(size: tuple[int, int] | None) -> str:
    return "{} x {} pixels".format(*size) if size else ""
