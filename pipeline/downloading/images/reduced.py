"""Decodes a JPEG at a half, a quarter or an eighth of its sides, which takes about half the time.

libjpeg computes the mean of the pixels of each square while it decodes. Resizing the means is nearly the same as
resizing all pixels, unless the picture has strong detail as fine as the squares, such as grass or print. The detail
that is left in the means tells how much the stored image would differ, so such a picture is decoded in full.
"""

import math

import cv2
import numpy as np

Pixels = np.ndarray
"""uint8: H × W (grey), or H × W × 3 (blue, green, red)."""

Size = tuple[int, int]
"""Width and height in pixels."""

MAX_DIFFERENCE = 6.0
"""Largest expected difference from the full decode: the mean squared difference of stored values of 0 to 255. It
corresponds to a PSNR of 40.3 dB. What is measured is up to 2.5 dB worse."""

_FLAGS = {
    2: (cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_COLOR_2),
    4: (cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_COLOR_4),
    8: (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_REDUCED_COLOR_8),
}
_BANDS = 32
"""Number of places, from the top to the bottom, at which the detail is measured."""

_COLOUR, _CODING = 0.004, 1.0
"""The difference that detail of the colours makes, and that of coding the stored image. As the weights of the detail
below, they are fitted to 27 photographs at 33 sizes, with and without subsampled colours."""


def factor_for(size: Size, stored: Size) -> int:
    """By how much the sides shrink while a JPEG is decoded; 1 for an ordinary decode.

    A factor of 4 or 8 saves little more than one of 2, so a stored pixel then has at least two means per side.

    Args:
        size: That of the image.
        stored: That of the stored image.
    """
    shrink = min(size[0] / stored[0], size[1] / stored[1])
    return 8 if shrink >= 16 else 4 if shrink >= 8 else 2 if shrink >= 2 else 1


def decoding_flags(factor: int, is_grey: bool) -> int:
    """The flags with which OpenCV decodes the means of squares of `factor` × `factor` pixels, not turned upright."""
    return _FLAGS[factor][not is_grey] | cv2.IMREAD_IGNORE_ORIENTATION


def reduced_size(size: Size, factor: int) -> Size:
    """Number of squares per row and per column. The last ones may extend beyond the image."""
    return -(-size[0] // factor), -(-size[1] // factor)


def method_for(means: Pixels, size: Size, stored: Size, factor: int) -> int | None:
    """How to resize the means, as a constant of OpenCV: the fastest way whose expected difference is small enough.

    Args:
        means: The mean of each square.
        size: The size of the image.
        stored: The size of the stored image.
        factor: That of the means.

    Returns:
        None if the image would differ too much, so that it has to be decoded in full.
    """
    brightness, colour = _detail(means)
    if all(old % (factor * new) == 0 for old, new in zip(size, stored, strict=True)):
        brightness = 0.0  # stored pixels consist of whole squares; only colours differ, which the full decode smoothes
    shrink = min(size[0] / stored[0], size[1] / stored[1]) / factor
    for method, weight in ((cv2.INTER_LINEAR, _weight_of_interpolation(shrink)), (cv2.INTER_AREA, _weight(shrink))):
        if weight * brightness + _COLOUR * colour + _CODING <= MAX_DIFFERENCE:
            return method
    return None


def resize(means: Pixels, size: Size, stored: Size, factor: int, method: int) -> Pixels:
    """Resize the means of squares, by the scale of the image: the last squares may extend beyond it.

    Args:
        means: The mean of each square.
        size: The size of the image.
        stored: The size of the result.
        factor: That of the means.
        method: What `method_for` returns.
    """
    scale_x, scale_y = (factor * new / old for new, old in zip(stored, size, strict=True))
    return cv2.resize(means, None, fx=scale_x, fy=scale_y, interpolation=method)[: stored[1], : stored[0]]


def _weight(shrink: float) -> float:
    """How much detail changes an image if areas of `shrink` means per side are averaged."""
    return 0.0145 / shrink**1.75


def _weight_of_interpolation(shrink: float) -> float:
    """The same if the means are interpolated, which takes an eighth of the time.

    It comes as close to the full decode while a stored pixel covers little more than one mean.
    """
    if shrink < 1.4:
        return _weight(shrink)
    return 0.0083 * max(1.0, shrink / 1.55) ** 2.3 if shrink < 2 else math.inf


def _detail(means: Pixels) -> tuple[float, float]:
    """The strength of the finest detail of the brightness and of the colours: the mean square of second differences."""
    height, width = means.shape[:2]
    step = max(3, height // _BANDS)
    rows = means[: height // step * step].reshape(-1, step, width, means.size // (height * width))[:, :3]
    above, middle, below = rows.astype(np.int16).swapaxes(0, 1)
    detail = [2 * middle - above - below, 2 * middle[:, 1:-1] - middle[:, :-2] - middle[:, 2:]]
    brightness = sum(map(_mean_square, detail))
    colours = [values[..., ::2] - values[..., 1:2] for values in detail if values.shape[-1] == 3]
    return brightness, 2 * sum(map(_mean_square, colours))


def _mean_square(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float32).mean())
