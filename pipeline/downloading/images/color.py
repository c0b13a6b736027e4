"""Colour: conversion to sRGB by an embedded ICC profile, and ICC profiles for what PNG and AVIF say in other ways.

A browser shows pixels as their profile says. What is stored has no profile, so that every reader takes it as sRGB. The
conversion uses Little CMS with the perceptual intent. The target is a version 2 profile: with one of version 4, Little
CMS would stretch the darkest ink of a CMYK profile to black, which browsers do not do.
"""

import io
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_D50 = (0.9642, 1.0, 0.8249)
_D65 = (0.3127, 0.3290)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_VERSION_2_4 = 0x02400000

Chromaticities = Sequence[tuple[float, float]]
"""x and y of red, green, blue and white."""

SRGB_PRIMARIES: Chromaticities = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65)

PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB_PRIMARIES,
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316)),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), (0.310, 0.316)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65),
}
"""Colour primaries by their code point in ITU-T H.273."""

Curve = Sequence[float]
"""Values of 0 to 1 that the samples of 0 to 1 stand for: an exponent, the five parameters of ICC's parametric curve of
type 3, or more values at even distances."""

SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_DISPLAY_CURVE: Curve = (2.4,)
_CURVE_STEPS = 4096
_PARAMETERS = (1, 5)


def _tone_mapped(light: np.ndarray) -> Curve:
    """As browsers show high dynamic range on an ordinary display. `light`: multiples of reference white, 203 cd/m²."""
    tones = np.interp(np.log(light.clip(1)), np.log([1, 1.557, 2.239, 4.926]), [0.5, 0.6654, 0.7758, 1])
    return tuple(np.where(light < 1, light / 2, tones))


def _pq() -> Curve:
    """SMPTE ST 2084."""
    root = np.linspace(0, 1, _CURVE_STEPS) ** (32 / 2523)
    light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (16384 / 2610)
    return _tone_mapped(light * 10_000 / 203)


def _hlg() -> Curve:
    """Hybrid log-gamma, on a display of 1000 cd/m²."""
    signal = np.linspace(0, 1, _CURVE_STEPS)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return _tone_mapped(scene**1.2 * 1000 / 203)


_CURVES: dict[int, Curve] = {
    **dict.fromkeys((1, 6, 11, 14, 15), _DISPLAY_CURVE),
    4: (2.2,),
    5: (2.8,),
    7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 0.0912),
    8: (1.0,),
    13: SRGB_CURVE,
    16: _pq(),
    17: (2.6, (52.37 / 48) ** (1 / 2.6), 0, 0, 0),
    18: _hlg(),
}
"""Transfer characteristics by their code point in ITU-T H.273."""


def rgb_profile(chromaticities: Chromaticities, curve: Curve) -> bytes:
    """An ICC profile of an RGB space.

    Args:
        chromaticities: x and y of red, green, blue and white.
        curve: The curve of each channel.

    Raises:
        ValueError: The chromaticities span no colour space.
    """
    if any(y <= 0 for _, y in chromaticities):
        raise ValueError("a chromaticity with y = 0")
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in chromaticities]).T
    try:
        matrix = columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])
    except np.linalg.LinAlgError:
        raise ValueError("primaries on a line") from None
    adapt = np.diag((_BRADFORD @ np.array(_D50)) / (_BRADFORD @ columns[:, 3]))
    matrix = np.linalg.inv(_BRADFORD) @ adapt @ _BRADFORD @ matrix
    tags = {b"wtpt": _xyz(_D50), b"desc": b"desc" + struct.pack(">II", 0, 1) + bytes(79)}
    for name, column in zip((b"r", b"g", b"b"), matrix.T, strict=True):
        tags |= {name + b"XYZ": _xyz(column), name + b"TRC": _curve(curve)}
    return _icc(b"RGB ", tags)


def coded_profile(primaries: int, transfer: int) -> bytes | None:
    """The ICC profile of code points of ITU-T H.273, as in PNG's cICP. None where one is not known."""
    if primaries not in PRIMARIES or transfer not in _CURVES:
        return None
    return rgb_profile(PRIMARIES[primaries], _CURVES[transfer])


def _icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, content, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(">I4xI4s4s4s12x4s28x", start + len(content), _VERSION_2_4, b"mntr", space, b"XYZ ", b"acsp")
    header += b"".join(map(_fixed, _D50)) + bytes(48)
    return header + table + content


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))  # struct.error where it does not fit


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _curve(curve: Curve) -> bytes:
    if len(curve) in _PARAMETERS:
        kind = 0 if len(curve) == 1 else 3
        return b"para\0\0\0\0" + struct.pack(">H2x", kind) + b"".join(map(_fixed, curve))
    values = np.rint(np.asarray(curve) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(values)) + values.tobytes()


SRGB = rgb_profile(SRGB_PRIMARIES, SRGB_CURVE)

Converter = Callable[[Image.Image], Image.Image]
"""Turns an image of the mode that it was made for into sRGB. `UNCHANGED` where it is sRGB already."""


def UNCHANGED(image: Image.Image) -> Image.Image:
    """The conversion that changes nothing."""
    return image


def converter(profiles: Sequence[bytes], mode: str) -> Converter:
    """The conversion of an image of `mode` (L, RGB or CMYK) to sRGB by the first profile that can be read.

    A profile for another kind of pixels changes nothing: browsers ignore it too.
    """
    return next(filter(None, (_converter(profile, mode) for profile in profiles)), UNCHANGED)


@lru_cache(maxsize=64)
def _converter(profile: bytes, mode: str) -> Converter | None:
    """The conversion from one profile. None where the profile is damaged."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if (space, mode) not in (("RGB", "RGB"), ("RGB", "L"), ("GRAY", "L"), ("CMYK", "CMYK")):
            return UNCHANGED
        source_mode = "RGB" if space == "RGB" else mode
        target = ImageCms.ImageCmsProfile(io.BytesIO(SRGB))
        transform = ImageCms.buildTransform(source, target, source_mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None

    def convert(image: Image.Image) -> Image.Image:
        return transform.apply(image if image.mode == source_mode else image.convert(source_mode))

    return convert if source_mode == "CMYK" or _changes_colours(convert, source_mode) else UNCHANGED


def _changes_colours(convert: Converter, mode: str) -> bool:
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    colours = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)).convert(mode)
    difference = np.asarray(convert(colours), int) - np.asarray(colours.convert("RGB"), int)
    return bool(np.abs(difference).max() > 2)
