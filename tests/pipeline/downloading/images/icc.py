"""ICC profiles of colour spaces for tests, made from their definitions."""

import struct

import numpy as np

from lotlip_data.pipeline.downloading.images.color import SRGB_CURVE, rgb_profile

D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
DISPLAY_P3 = rgb_profile(((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), D65), SRGB_CURVE)
ADOBE_RGB = rgb_profile(((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65), (563 / 256,))
PROPHOTO = rgb_profile(((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), D50), (1.8,))
WHITE = (0.9642, 1.0, 0.8249)


def profile(kind: bytes, space: bytes, connection_space: bytes, tags: dict[bytes, bytes], version: int = 2) -> bytes:
    """A profile with these tags."""
    table, content, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x", start + len(content), version << 24, kind, space, connection_space, b"acsp"
    )
    return header + b"".join(map(fixed, WHITE)) + bytes(48) + table + content


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def grey(exponent: float) -> bytes:
    curve = b"curv\0\0\0\0\0\0\0\1" + struct.pack(">H", round(exponent * 256))
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(fixed, WHITE)), b"kTRC": curve})


def ink_colours(inks: np.ndarray) -> np.ndarray:
    """L*a*b* of cyan, magenta, yellow and black inks of 0 to 1 on paper: ... × 4 → ... × 3."""
    cyan, magenta, yellow, black = np.moveaxis(inks, -1, 0)
    light = 95 - 40 * cyan - 45 * magenta - 5 * yellow
    red_green = -35 * cyan + 70 * magenta - 5 * yellow
    yellow_blue = -45 * cyan - 5 * magenta + 85 * yellow
    rest = 1 - black
    return np.stack([(light.clip(20) - 10) * rest + 10, red_green * rest, yellow_blue * rest], -1)


def cmyk(version: int = 2) -> bytes:
    """A profile of `ink_colours`, as a table of 5 × 5 × 5 × 5 colours."""
    steps = np.linspace(0, 1, 5)
    lab = ink_colours(np.stack(np.meshgrid(steps, steps, steps, steps, indexing="ij"), -1))
    values = np.stack([lab[..., 0] * 652.8, (lab[..., 1] + 128) * 256, (lab[..., 2] + 128) * 256], -1).astype(">u2")
    matrix = b"".join(map(fixed, np.eye(3).ravel()))
    linear = struct.pack(">HH", 0, 65535)
    table = b"mft2\0\0\0\0\4\3\5\0" + matrix + struct.pack(">HH", 2, 2) + linear * 4 + values.tobytes() + linear * 3
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table}, version)
