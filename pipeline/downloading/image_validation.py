"""Checks a downloaded body before img2dataset's resizer sees it: format, completeness, size, orientation.

The resizer decodes with OpenCV. As img2dataset calls it, OpenCV ignores the EXIF orientation, fills the missing part
of a truncated JPEG with grey, clips 16-bit samples to white, and decodes before the size is known. So Pillow reads the
header first. Images that OpenCV would decode wrongly are decoded by Pillow and passed on as RGB; all others are passed
on byte for byte.
"""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000")
_OPENCV_FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP"})  # MPO: a JPEG followed by further JPEGs
_EXIF_ORIENTATION = 0x0112
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def prepare(data: bytes, max_pixels: int) -> bytes:
    """Turn `data` into an image file that OpenCV decodes correctly: `data` itself, or its first frame as a PPM.

    Raises:
        FetchError: `data` is not an image, is truncated, has more than `max_pixels` pixels, or cannot be decoded.
    """
    if not _has_end(data):
        raise FetchError(failures.TRUNCATED)
    Image.MAX_IMAGE_PIXELS = None  # replaced by `max_pixels`, checked before decoding
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise FetchError(failures.TOO_MANY_PIXELS, f"{width} × {height}")
            return data if _opencv_decodes_correctly(image, data) else _as_ppm(image)
    except FetchError:
        raise
    except Exception as error:  # whatever a hostile file does to a decoder costs only that file
        raise _decoding_error(data, error) from error


def _decoding_error(data: bytes, error: Exception) -> FetchError:
    if "truncated" in str(error):
        return FetchError(failures.TRUNCATED)
    if isinstance(error, Image.UnidentifiedImageError) and not data.startswith((_JPEG, _PNG)) and not _is_webp(data):
        return FetchError(failures.NOT_AN_IMAGE, kind_of(data))
    return FetchError(failures.UNDECODABLE, type(error).__name__)


def _has_end(data: bytes) -> bool:
    """Whether the file has its end marker, as far as that is cheap to check; True for formats without one."""
    if data.startswith(_JPEG):
        return _jpeg_has_end(data)
    if data.startswith(_PNG):
        return data.rfind(b"IEND") > 0
    if _is_webp(data):
        return len(data) >= int.from_bytes(data[4:8], "little") + 8
    return True


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _jpeg_has_end(data: bytes) -> bool:
    """Whether an end marker follows the first scan. The end marker of a thumbnail precedes it and does not count."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return data.rfind(b"\xff\xd9") > at  # search from the end, where it is
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xD0 <= marker <= 0xD8 or marker == 0x01:  # a marker without a length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _opencv_decodes_correctly(image: Image.Image, data: bytes) -> bool:
    eight_bits = not data.startswith(_PNG) or data[24] <= 8
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info and not getattr(image, "is_animated", False)
    return image.format in _OPENCV_FORMATS and plain and eight_bits and _orientation(image) == 1


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, 1 to 8; 1 if there is none or it cannot be read."""
    try:
        # The base class: PNG's own method decodes the whole image to look for EXIF data after it.
        return Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 — as in `prepare`; a broken EXIF block does not spoil the pixels
        return 1


def _as_ppm(image: Image.Image) -> bytes:
    """The first frame as a PPM (lossless and fast): upright, with transparent parts on white."""
    if image.mode in ("I", "F"):
        raise FetchError(failures.UNDECODABLE, f"pixels of mode {image.mode}")
    if image.mode.startswith("I;16"):
        image = _with_exif(image, Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)))
    if _orientation(image) in range(2, 9):
        image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "PPM")
    return stream.getvalue()


def _with_exif(source: Image.Image, image: Image.Image) -> Image.Image:
    image.info = source.info
    return image


def kind_of(data: bytes) -> str:
    """A guess for people at what a body is that is not an image."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")) or b"<html" in head:
        return "html"
    if b"<svg" in head:
        return "svg"
    known = {b"<?xml": "xml", b"{": "json", b"[": "json", b"%pdf": "pdf", b"\x1f\x8b": "gzip", b"pk\x03\x04": "zip"}
    for start, name in known.items():
        if head.startswith(start):
            return name
    if head[4:8] == b"ftyp":
        return "video"
    return "text" if head and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head) else "unknown"
