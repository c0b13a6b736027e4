"""Converts a downloaded body to the JPEG that is stored: decoded, in sRGB, transparent parts on white, upright, small.

OpenCV decodes, resizes and encodes ordinary images, with the same result as img2dataset. As img2dataset calls it, it
ignores orientations and colour profiles, clips 16-bit samples to white, and fills the missing part of a truncated JPEG
with grey. So Pillow decodes what is not ordinary, and the rest happens here. Peak memory is what the decoder needs:
pixels are converted in strips.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image

from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.images import jpeg, reduced
from lotlip_data.pipeline.downloading.images.color import UNCHANGED, Converter, converter
from lotlip_data.pipeline.downloading.images.messages import ConversionSettings, Converted
from lotlip_data.pipeline.downloading.images.reduced import Pixels
from lotlip_data.pipeline.downloading.images.source import Source, decoding_error, read_source

MAX_SIDE = 65_500
"""Pixels per side that a JPEG file can have, with libjpeg."""

_STRIP_PIXELS = 1 << 20


def convert(data: bytes, settings: ConversionSettings, before_decoding: Callable[[int], None]) -> Converted:
    """Convert a downloaded body.

    Args:
        data: The body.
        settings: The limits, and the size and quality of stored images.
        before_decoding: Called with the memory that the decoding will take, in bytes.

    Raises:
        FetchError: It is no image, damaged, or beyond a limit.
    """
    try:
        source = read_source(data)
        _check_limits(source, settings)
        before_decoding(source.decoded_bytes(settings.image_size))
        is_plain = source.is_plain
        stored = _encode(_stored_pixels(source, settings), source, settings)
        return replace(stored, is_plain=is_plain)
    except FetchError:
        raise
    except Exception as error:  # whatever a hostile file does to a decoder costs only that file
        raise decoding_error(data, error) from error


def _check_limits(source: Source, settings: ConversionSettings) -> None:
    width, height = source.size
    if width * height > settings.max_pixels:
        raise FetchError(failures.TOO_MANY_PIXELS, f"{width} × {height}")
    if (side := max(_stored_size(width, height, settings.image_size))) > MAX_SIDE:
        raise FetchError(
            failures.TOO_LONG, f"{width} × {height}; a JPEG has at most {MAX_SIDE} pixels per side, not {side}"
        )
    if (needed := source.decoded_bytes(settings.image_size)) > settings.max_decoded_bytes:
        detail = f"{width} × {height} {source.kind} takes {needed >> 20} MiB to decode"
        raise FetchError(failures.TOO_MUCH_MEMORY, f"{detail}; `download.max_decoded_bytes` is the limit")


def _stored_size(width: int, height: int, image_size: int) -> tuple[int, int]:
    """Width and height of the stored image: the shorter side at most `image_size` pixels."""
    scale = image_size / min(width, height)
    return (round(width * scale), round(height * scale)) if scale < 1 else (width, height)


def _stored_pixels(source: Source, settings: ConversionSettings) -> Pixels:
    """The pixels of the stored image, in sRGB and resized, not yet upright."""
    if source.kind == "jpeg" and not jpeg.has_end(source.data):
        _add_end(source)
    mode = _base_mode(source.image.mode)
    to_srgb = converter(source.profiles, mode)
    if source.suits_opencv and (pixels := _resized_by_opencv(source, settings)) is not None:
        return pixels if to_srgb is UNCHANGED else _convert_pixels(pixels, to_srgb)
    return _resize(_decode_with_pillow(source, to_srgb, settings.image_size), settings.image_size, source)


def _base_mode(mode: str) -> str:
    """The mode that a colour profile applies to: L, RGB or CMYK."""
    return "CMYK" if mode == "CMYK" else "L" if mode in ("1", "L", "LA", "La") or mode.startswith("I;16") else "RGB"


def _add_end(source: Source) -> None:
    """Add the end mark that a JPEG lacks.

    Raises FetchError if pixels are missing too: then they depend on what is put in their place.
    """
    start = jpeg.without_end(source.data)
    if not jpeg.has_all_scans(start):
        raise FetchError(failures.TRUNCATED)
    _check_pixels_before_end(start)
    source.replace_data(start + jpeg.END)


def _check_pixels_before_end(start: bytes) -> None:
    """Raise FetchError if pixels of a JPEG depend on what stands between its data and its end mark.

    Args:
        start: The file without its end mark.
    """
    decoded = (_imdecode(start + filler + jpeg.END) for filler in jpeg.FILLERS)
    if len({None if pixels is None else zlib.crc32(pixels.tobytes()) for pixels in decoded}) != 1:
        raise FetchError(failures.TRUNCATED)


def _check_last_pixel(pixels: Pixels, source: Source) -> None:
    """Raise FetchError if the last rows of a JPEG are missing, although it has an end mark.

    libjpeg fills them with the middle of the range, which Pillow inverts in CMYK. Whether such a corner is part of the
    image is found by decoding the file again.
    """
    is_grey = source.kind == "jpeg" and all(value in (127, 128) for value in pixels[-1, -1].ravel().tolist())
    if is_grey and (start := jpeg.before_end(source.data)):
        _check_pixels_before_end(start)


def _resized_by_opencv(source: Source, settings: ConversionSettings) -> Pixels | None:
    """The pixels of the stored image, before colours are converted. None if OpenCV cannot decode them; Pillow may."""
    if source.kind == "jpeg" and not settings.full_decode:
        pixels = _decode_reduced(source, _stored_size(*source.size, settings.image_size))
        if pixels is not None:
            return pixels
    pixels = _decode_with_opencv(source)
    if pixels is None:
        return None
    _check_last_pixel(pixels, source)
    return _resize(pixels, settings.image_size, source)


def _decode_reduced(source: Source, size: tuple[int, int]) -> Pixels | None:
    """The pixels of a JPEG, reduced as it is decoded, then resized to `size`. None if that would change the image."""
    factor = reduced.factor_for(source.size, size)
    if factor == 1:
        return None
    means = _imdecode(source.data, reduced.decoding_flags(factor, source.image.mode == "L"))
    if means is None or means.shape[1::-1] != reduced.reduced_size(source.size, factor):
        return None
    _check_last_pixel(means, source)
    method = reduced.method_for(means, source.size, size, factor)
    return None if method is None else reduced.resize(means, source.size, size, factor, method)


def _decode_with_opencv(source: Source) -> Pixels | None:
    """The decoded pixels. None if OpenCV cannot decode them; Pillow may."""
    pixels = _imdecode(source.data)
    if pixels is None and source.png is not None:
        pixels = _imdecode(source.png.with_checksum())
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape[1::-1] != source.size:
        return None
    return pixels if pixels.ndim == 2 or pixels.shape[2] == 3 else None


def _imdecode(data: bytes, flags: int = cv2.IMREAD_UNCHANGED) -> Pixels | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        return None


def _decode_with_pillow(source: Source, to_srgb: Converter, image_size: int) -> Pixels:
    """The decoded pixels, made RGB in strips and, if there are many, reduced by a whole factor towards their size."""
    if source.image.mode in ("I", "F"):
        raise FetchError(failures.UNDECODABLE, f"pixels of mode {source.image.mode}")
    factor = source.reduction(image_size)
    image = _load(source, factor)
    width, height = image.size  # of a JPEG, reduced already
    _check_last_pixel(np.asarray(image.crop((width - 1, height - 1, width, height))), source)
    factor = 1 if image.size != source.size else factor
    pixels = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width // factor) * factor
    base = _base_mode(image.mode)
    for top in range(0, height, rows):
        strip = _as_rgb(image.crop((0, top, width, min(height, top + rows))), base, to_srgb)
        if source.frame is not None:
            strip = _with_blank_margin(strip, source.frame, top)
        reduced = np.asarray(strip.reduce(factor) if factor > 1 else strip)
        pixels[top // factor : top // factor + len(reduced)] = reduced[:, :, ::-1]
    return pixels


def _with_blank_margin(strip: Image.Image, frame: tuple[int, int, int, int], top: int) -> Image.Image:
    """Rows of an image from `top` on, white outside its first frame."""
    left, upper, right, lower = frame
    box = (max(left, 0), max(upper - top, 0), min(right, strip.width), min(lower - top, strip.height))
    canvas = Image.new("RGB", strip.size, "white")
    if box[0] < box[2] and box[1] < box[3]:
        canvas.paste(strip.crop(box), box[:2])
    return canvas


def _load(source: Source, factor: int) -> Image.Image:
    """Pillow's image with its pixels. libjpeg can reduce them by a power of 2, up to `factor`."""
    if factor > 1:
        source.image.draft(None, (source.image.width // factor, source.image.height // factor))
    try:
        source.image.load()
    except OSError as error:
        if source.png is None or source.png.has_default_image or "truncated" in str(error):
            raise
        source.replace_data(source.png.with_checksum())
        source.image.load()
    if _may_lack_rows(source) and source.png is not None and not source.png.has_all_rows():
        raise FetchError(failures.TRUNCATED)
    return source.image


def _may_lack_rows(source: Source) -> bool:
    """Whether the last row of a PNG is zero throughout, as Pillow leaves a row that the file lacks."""
    if source.png is None or source.png.has_default_image:
        return False
    width, height = source.image.size
    return not np.asarray(source.image.crop((0, height - 1, width, height))).any()


def _as_rgb(strip: Image.Image, base: str, to_srgb: Converter) -> Image.Image:
    """Part of an image as RGB in sRGB, with transparent parts on white.

    Args:
        strip: The part.
        base: Its `_base_mode`.
        to_srgb: The conversion of an image of mode `base`.
    """
    alpha = None
    if strip.mode.startswith("I;16"):
        strip, alpha = _eight_bits(strip)
    elif strip.has_transparency_data:
        strip = strip.convert("RGBA")
        alpha, strip = strip.getchannel("A"), strip.convert("RGB")
    rgb = to_srgb(strip if strip.mode == base else strip.convert(base))
    rgb = rgb if rgb.mode == "RGB" else rgb.convert("RGB")
    if alpha is None:
        return rgb
    canvas = Image.new("RGB", rgb.size, "white")
    canvas.paste(rgb, mask=alpha)
    return canvas


def _eight_bits(strip: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Grey of 16 bits as grey of 8 bits, and its opacity if one value means transparent."""
    values = np.asarray(strip)
    transparent = strip.info.get("transparency")
    alpha = Image.fromarray((values != transparent).astype(np.uint8) * 255) if isinstance(transparent, int) else None
    return Image.fromarray((values >> 8).astype(np.uint8)), alpha


def _convert_pixels(pixels: Pixels, to_srgb: Converter) -> Pixels:
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1] if pixels.ndim == 3 else pixels))
    return np.asarray(to_srgb(image))[:, :, ::-1]


def _resize(pixels: Pixels, image_size: int, source: Source) -> Pixels:
    size = _stored_size(*source.size, image_size)
    if size == pixels.shape[1::-1]:
        return pixels
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
"""How to turn an image upright, by its EXIF orientation."""


def _encode(pixels: Pixels, source: Source, settings: ConversionSettings) -> Converted:
    upright = np.ascontiguousarray(_UPRIGHT[source.orientation](pixels))
    original = source.size if source.orientation < 5 else source.size[::-1]
    encoded, body = cv2.imencode(".jpg", upright, [cv2.IMWRITE_JPEG_QUALITY, settings.quality])
    if not encoded:
        raise FetchError(failures.UNDECODABLE, "its pixels cannot be encoded")
    return Converted(body.tobytes(), upright.shape[1], upright.shape[0], *original)
