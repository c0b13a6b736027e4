"""The stored pixels are the colours that the file means, in sRGB."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lotlip_data.pipeline.downloading.images.color import SRGB, UNCHANGED, converter
from tests.pipeline.downloading.images import icc
from tests.pipeline.downloading.images.test_conversion import chunk, encoded, stored

SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
ADAPTED = np.array(
    [[0.955473, -0.0230985, 0.0632593], [-0.0283697, 1.009995, 0.0210413], [0.0123140, -0.0205076, 1.330365]]
)
"""D50 to D65, Bradford."""


def expand(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def as_srgb(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def lab(rgb: np.ndarray) -> np.ndarray:
    ratio = expand(rgb / 255) @ SRGB_TO_XYZ.T / (0.9505, 1.0, 1.089)
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.stack(
        [116 * root[..., 1] - 16, 500 * (root[..., 0] - root[..., 1]), 200 * (root[..., 1] - root[..., 2])], -1
    )


def colour_distance(image: Image.Image, expected: np.ndarray) -> float:
    """Mean ΔE between an image and RGB values of 0 to 255."""
    difference = lab(np.asarray(image.convert("RGB"), float)) - lab(expected)
    return float(np.sqrt((difference**2).sum(-1)).mean())


def smooth(channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[0:1:80j, 0:1:120j]
    planes = [x, y, 1 - (x + y) / 2, x * y]
    return np.rint(255 * np.stack(planes[:channels], -1)).astype(np.uint8)


PICTURE = Image.fromarray(smooth())
XYZ_OF = {
    "Display P3": (icc.DISPLAY_P3, [[0.4866, 0.2657, 0.1982], [0.2290, 0.6917, 0.0793], [0.0, 0.0451, 1.0439]], expand),
    "Adobe RGB": (
        icc.ADOBE_RGB,
        [[0.5767, 0.1856, 0.1882], [0.2973, 0.6274, 0.0753], [0.0270, 0.0707, 0.9911]],
        lambda values: values ** (563 / 256),
    ),
}


@pytest.mark.parametrize("space", XYZ_OF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_embedded_profile_is_applied_in_every_format(space: str, kind: str) -> None:
    profile, to_xyz, curve = XYZ_OF[space]
    options = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    shown = as_srgb(curve(np.asarray(PICTURE) / 255) @ np.array(to_xyz).T @ np.linalg.inv(SRGB_TO_XYZ).T)
    assert colour_distance(PICTURE, shown) > 3
    data = encoded(PICTURE, kind, icc_profile=profile, **options.get(kind, {}))
    assert colour_distance(stored(data, quality=100), shown) < 1.5
    resized = np.asarray(Image.fromarray(shown.astype(np.uint8)).resize((60, 40), Image.Resampling.BOX), float)
    assert colour_distance(stored(data, 40, 100), resized) < 1.5


def test_the_profile_of_a_transparent_or_16_bit_image_is_applied() -> None:
    red = (234, 51, 35)  # sRGB's red in Display P3
    for image in (Image.new("RGBA", (40, 40), (*red, 255)), Image.new("RGB", (40, 40), red).quantize(4)):
        pixel = stored(encoded(image, "PNG", icc_profile=icc.DISPLAY_P3)).convert("RGB").getpixel((20, 20))
        assert np.abs(np.subtract(pixel, (254, 0, 0))).max() <= 3
    rows = b"\0" + struct.pack(">3H", *(value * 257 for value in red)) * 40
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0))
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(icc.DISPLAY_P3))
    data = b"\x89PNG\r\n\x1a\n" + header + profile + chunk(b"IDAT", zlib.compress(rows * 40)) + chunk(b"IEND", b"")
    assert np.abs(np.subtract(stored(data).convert("RGB").getpixel((20, 20)), (254, 0, 0))).max() <= 3


@pytest.mark.parametrize("version", [2, 4])
def test_inks_are_shown_as_their_profile_says(version: int) -> None:
    inks = smooth(4)
    light = icc.ink_colours(inks / 255)
    root_y = (light[..., 0] + 16) / 116
    roots = np.stack([root_y + light[..., 1] / 500, root_y, root_y - light[..., 2] / 200], -1)
    xyz = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * icc.WHITE
    shown = as_srgb(xyz @ ADAPTED.T @ np.linalg.inv(SRGB_TO_XYZ).T)
    image = Image.fromarray(inks, "CMYK")
    data = encoded(image, "JPEG", quality=100, icc_profile=icc.cmyk(version))
    assert colour_distance(image.convert("RGB"), shown) > 10
    assert colour_distance(stored(data, quality=100), shown) < 2
    tiff = encoded(image, "TIFF", icc_profile=icc.cmyk(version))
    assert colour_distance(stored(tiff, quality=100), shown) < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_profile_of_grey_is_applied_to_grey(kind: str) -> None:
    image = Image.fromarray(smooth(1)[..., 0])
    shown = np.repeat(as_srgb(np.asarray(image)[..., None] / 255), 3, -1)
    options = {"quality": 100} if kind == "JPEG" else {}
    assert colour_distance(stored(encoded(image, kind, icc_profile=icc.grey(1.0), **options), quality=100), shown) < 1


@pytest.mark.parametrize(
    "profile",
    [b"x" * 500, b"", icc.DISPLAY_P3[:200], icc.DISPLAY_P3[:-40], icc.grey(1.0), icc.cmyk(), SRGB],
    ids=["junk", "empty", "no tags", "cut", "grey", "CMYK", "sRGB"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_profile_that_is_damaged_or_of_other_pixels_or_of_srgb_changes_nothing(kind: str, profile: bytes) -> None:
    assert stored(encoded(PICTURE, kind, icc_profile=profile)) == stored(encoded(PICTURE, kind))


def test_inks_without_a_usable_profile_are_shown_as_browsers_show_them() -> None:
    image = Image.fromarray(smooth(4), "CMYK")
    for profile in (None, icc.DISPLAY_P3, icc.cmyk()[:-5000]):
        data = encoded(image, "JPEG", quality=100, icc_profile=profile)
        assert colour_distance(stored(data, quality=100), np.asarray(image.convert("RGB"), float)) < 2


def test_only_other_spaces_than_srgb_are_converted() -> None:
    assert converter([SRGB], "RGB") is UNCHANGED
    assert converter([], "RGB") is UNCHANGED
    assert converter([b"junk", icc.DISPLAY_P3], "RGB") is not UNCHANGED
    assert converter([SRGB, icc.DISPLAY_P3], "RGB") is UNCHANGED


def png_with(*chunks: bytes) -> bytes:
    data = encoded(PICTURE, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def gamma(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def coded(primaries: int, transfer: int, matrix: int = 0, full_range: int = 1) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, matrix, full_range]))


P3_CHUNK = chunk(b"iCCP", b"p\0\0" + zlib.compress(icc.DISPLAY_P3))
JUNK_PROFILE = chunk(b"iCCP", b"p\0\0" + zlib.compress(b"junk" * 50))
P3_CHROMATICITIES = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
SRGB_CHUNK = chunk(b"sRGB", b"\0")


def test_chunks_of_a_png_that_describe_its_colours_count_in_the_order_of_browsers() -> None:
    plain, p3 = stored(png_with()), stored(png_with(P3_CHUNK))
    linear = np.asarray(PICTURE) / 255
    assert plain != p3
    for chunks in ((P3_CHUNK, SRGB_CHUNK), (P3_CHUNK, gamma(1)), (gamma(1), P3_CHUNK), (coded(12, 13),)):
        assert stored(png_with(*chunks)) == p3
    for chunks in (
        (SRGB_CHUNK, gamma(1)),
        (coded(1, 13), P3_CHUNK),
        (gamma(0.45455),),
        (gamma(0),),
        (P3_CHROMATICITIES,),
        (coded(12, 13, full_range=0),),
        (JUNK_PROFILE, SRGB_CHUNK, gamma(1)),
        (chunk(b"cHRM", bytes(32)), gamma(1)),
    ):
        assert stored(png_with(*chunks)) == plain
    for chunks in ((gamma(1),), (JUNK_PROFILE, gamma(1)), (coded(2, 2), gamma(1)), (coded(1, 8),)):
        assert colour_distance(stored(png_with(*chunks), quality=100), as_srgb(linear)) < 1
    assert colour_distance(stored(png_with(gamma(0.55)), quality=100), as_srgb(linear ** (1 / 0.55))) < 1
    assert (
        colour_distance(stored(png_with(gamma(0.45455), P3_CHROMATICITIES)), np.asarray(p3.convert("RGB"), float)) < 2
    )


def test_the_code_points_of_an_avif_are_applied() -> None:
    data = bytearray(encoded(PICTURE, "AVIF", quality=100, subsampling="4:4:4"))
    at = data.find(b"colrnclx") + 8
    assert at > 8
    plain = stored(bytes(data), quality=100)
    expected = np.asarray(stored(png_with(P3_CHUNK), quality=100).convert("RGB"), float)
    for primaries, transfer in ((12, 13), (12, 2), (12, 1)):
        data[at : at + 4] = struct.pack(">HH", primaries, transfer)
        assert colour_distance(stored(bytes(data), quality=100), expected) < 1.5
    data[at : at + 4] = struct.pack(">HH", 1, 1)
    assert stored(bytes(data), quality=100) == plain


def test_bright_scenes_are_shown_on_the_scale_of_an_ordinary_display() -> None:
    for transfer, white in ((16, 0.58), (18, 0.75)):  # the signal of reference white
        image = Image.new("RGB", (40, 40), (round(255 * white),) * 3)
        data = encoded(image, "PNG")
        level = stored(data[:33] + coded(9, transfer) + data[33:]).convert("RGB").getpixel((20, 20))
        assert 180 < min(level) <= max(level) < 195  # type: ignore[type-var]


def test_the_profile_of_a_bmp_is_applied() -> None:
    rows = np.asarray(PICTURE)[::-1, :, ::-1].tobytes()
    header = struct.pack("<IiiHHIIiiII", 124, *PICTURE.size, 1, 24, 0, len(rows), 2835, 2835, 0, 0)
    header += bytes(16) + b"DEBM" + bytes(48) + struct.pack("<IIII", 4, 124 + len(rows), len(icc.DISPLAY_P3), 0)
    start = 14 + len(header)
    data = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + rows
    expected = np.asarray(stored(png_with(P3_CHUNK), quality=100).convert("RGB"), float)
    assert len(header) == 124
    assert colour_distance(stored(data + icc.DISPLAY_P3, quality=100), expected) < 0.5
    assert stored(data) == stored(png_with())
