"""A map over an image, as a picture."""

import io

import numpy as np
from PIL import Image

SIDE = 448
"""Pixels of the picture's sides."""
COLOURS = "inferno"
STRENGTH = 0.6


def overlay(image: Image.Image, patches: np.ndarray) -> bytes:
    """PNG of a square RGB image under its map, float [rows, columns] ≥ 0, in shares of its own largest value.

    Where the map is 0 the image is dark and grey; the more it has, the more of the colour.
    """
    from matplotlib import colormaps

    most = float(patches.max())
    shares = (patches / most if most > 0 else np.zeros_like(patches)).astype(np.float32)
    smooth = Image.fromarray(shares).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0, 1)[..., None]
    picture = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    ground = np.asarray(picture.convert("L").convert("RGB"), np.float32) * 0.6
    colour = colormaps[COLOURS](heat[..., 0])[..., :3] * 255
    share = STRENGTH * np.sqrt(heat)
    drawn = Image.fromarray((ground * (1 - share) + colour * share).astype(np.uint8))
    out = io.BytesIO()
    drawn.save(out, "PNG")
    return out.getvalue()
