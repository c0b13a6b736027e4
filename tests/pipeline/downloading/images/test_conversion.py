"""A downloaded file is stored as the image that it shows, or fails with a reason. A wrong image is never stored."""

import io
import os
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lotlip_data.pipeline.downloading.failures import FetchError, split_message
from lotlip_data.pipeline.downloading.images.conversion import convert
from lotlip_data.pipeline.downloading.images.messages import ConversionSettings, Converted
from tests.support.paths import ROOT

SIZE = (120, 80)


def picture() -> Image.Image:
    """A smooth image without symmetry: red grows to the right, green downwards, and the top has no blue."""
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    channels = [x * 255 // (SIZE[0] - 1), y * 255 // (SIZE[1] - 1), (y > SIZE[1] // 2) * 120]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def converted(data: bytes, **settings: int) -> Converted:
    return convert(data, ConversionSettings(**{"max_pixels": 1_000_000} | settings), lambda memory: None)


def stored(data: bytes, size: int = 512, quality: int = 95) -> Image.Image:
    """The image that is stored for a downloaded file."""
    result = converted(data, image_size=size, quality=quality)
    image = Image.open(io.BytesIO(result.body))
    assert (image.format, image.size) == ("JPEG", (result.width, result.height))
    return image


def distance(image: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of RGB values, 0 to 255."""
    assert image.size == other.size
    return float(np.abs(np.asarray(image.convert("RGB"), float) - np.asarray(other.convert("RGB"), float)).mean())


def refusal_message(data: bytes, **settings: int) -> str:
    with pytest.raises(FetchError) as refusal:
        converted(data, **settings)
    assert split_message(str(refusal.value))[0] == refusal.value.reason
    return str(refusal.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_each_format_is_stored_as_the_image_that_it_shows(kind: str) -> None:
    data = encoded(picture(), kind)
    shown = Image.open(io.BytesIO(data)).convert("RGB")
    assert distance(stored(data), shown) < 3
    assert distance(stored(data, 40), shown.resize((60, 40), Image.Resampling.BOX)) < 3.5


@pytest.mark.parametrize("size", [16, 33, 50, 79, 512])
def test_ordinary_files_are_stored_byte_for_byte_as_by_img2dataset(size: int) -> None:
    """Without `full_decode`, JPEGs that shrink by two or more are an exception: see `test_reduced.py`."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for its newest version
    from img2dataset.resizer import Resizer

    resizer = Resizer(size, "keep_ratio", resize_only_if_bigger=True, encode_quality=95)
    wide = picture().resize((213, 80))
    for image, kind in ((picture(), "JPEG"), (wide, "PNG"), (wide, "WEBP"), (wide.convert("L"), "JPEG")):
        for options in ({}, {"progressive": True}) if kind == "JPEG" else ({},):
            data = encoded(image, kind, **options)
            result = converted(data, image_size=size, full_decode=True)
            theirs = resizer(io.BytesIO(data))
            ours = (result.body, result.width, result.height, result.original_width, result.original_height, None)
            assert ours == theirs


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "AVIF", "TIFF"])
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    turns = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [4], 7: [6], 8: [2]}
    turned = picture()
    for turn in turns[orientation]:
        turned = turned.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), kind, exif=exif)
    assert distance(stored(data), turned) < 2.5
    result = converted(data, image_size=40)
    assert (result.original_width, result.original_height) == turned.size
    assert distance(stored(data, 40), turned.resize((result.width, result.height), Image.Resampling.BOX)) < 3.5


def test_orientations_that_browsers_ignore_are_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert distance(stored(encoded(picture(), "WEBP", exif=exif)), picture()) < 3
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'
    assert distance(stored(encoded(picture(), "JPEG", xmp=xmp, quality=95)), picture()) < 3
    png = encoded(picture(), "PNG")
    for entry in ((0x0112, 4, 1, 6), (0x0112, 3, 2, 6), (0x0112, 3, 1, 9)):
        block = b"II*\0" + struct.pack("<IHHHIII", 8, 1, *entry, 0)
        assert distance(stored(png[:33] + chunk(b"eXIf", block) + png[33:]), picture()) < 3
        segment = struct.pack(">HH", 0xFFE1, len(block) + 8) + b"Exif\0\0" + block
        jpeg = encoded(picture(), "JPEG", quality=95)
        assert distance(stored(jpeg[:2] + segment + jpeg[2:]), picture()) < 3
    after_pixels = png[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + png[-12:]
    assert distance(stored(after_pixels), picture()) < 3


def grey16(kind: str) -> bytes:
    return encoded(Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257), kind)


def test_unusual_pixel_formats_are_stored_as_what_they_show() -> None:
    grey = picture().convert("L")
    assert distance(stored(encoded(grey, "JPEG")), grey) < 1
    assert distance(stored(grey16("PNG")), grey) < 1
    assert distance(stored(grey16("TIFF")), grey) < 1
    assert distance(stored(encoded(picture().convert("CMYK"), "JPEG", quality=95)), picture()) < 3
    assert distance(stored(encoded(picture().convert("1"), "PNG")), picture().convert("1")) < 8
    palette = picture().quantize(64)
    assert distance(stored(encoded(palette, "PNG")), palette) < 3


def test_rgb_with_16_bits_per_channel_is_not_stored_as_white() -> None:
    rows = np.asarray(picture()).astype(">u2") * 257
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    assert distance(stored(data), picture()) < 2.5


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode: str) -> None:
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray((np.mgrid[0 : SIZE[1], 0 : SIZE[0]][1] < 60).astype(np.uint8) * 255))
    data = encoded(image.convert("LA") if mode == "LA" else image.quantize(64) if mode == "P" else image, "PNG")
    pixels = np.asarray(stored(data).convert("RGB"))
    assert pixels[:, 70:].min() > 245
    assert pixels[:, :50].mean() < 150


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_grey_of_a_png_becomes_white(bits: int) -> None:
    header = struct.pack(">IIBBBBB", 16, 8, bits, 0, 0, 0, 0)
    darkest, next_darkest = bytes(2 * bits), bytes([(0x55, 0x55, 0x11, 1)[bits.bit_length() - 1]]) * 2 * bits
    for row, grey, is_white in ((darkest, 0, True), (next_darkest, 1, True), (darkest, 1, False)):
        pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * 8))
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", grey)) + pixels
        if bits > 1 or row is darkest:
            assert np.asarray(stored(data)).mean() == (255 if is_white else 0)


def gif(canvas: tuple[int, int], box: tuple[int, int, int, int]) -> bytes:
    """A GIF with a red frame at `box`: left, top, width and height. The background is blue."""
    palette = bytes([255, 0, 0, 0, 0, 255])
    pixels = encoded(Image.new("L", box[2:]), "GIF").partition(b"\x2c")[2][9:]
    header = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 1, 0) + palette
    return header + b"," + struct.pack("<HHHHB", *box, 0) + pixels


def webp(canvas: tuple[int, int], box: tuple[int, int, int, int]) -> bytes:
    """As `gif`: an animated WebP without the mark of transparency, whose background is black."""

    def part(name: bytes, content: bytes) -> bytes:
        return name + struct.pack("<I", len(content)) + content + bytes(len(content) & 1)

    def sides(*values: int) -> bytes:
        return b"".join(value.to_bytes(3, "little") for value in values)

    left, top, width, height = box
    pixels = encoded(Image.new("RGB", (width, height), "red"), "WEBP", lossless=True)[12:]
    frame = sides(left // 2, top // 2, width - 1, height - 1, 100) + b"\0" + pixels
    size = sides(canvas[0] - 1, canvas[1] - 1)
    body = part(b"VP8X", b"\2\0\0\0" + size) + part(b"ANIM", b"\0\0\0\xff\0\0") + part(b"ANMF", frame)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize("make", [gif, webp])
@pytest.mark.parametrize("size", [512, 16])
def test_what_the_first_frame_of_an_animation_does_not_fill_becomes_white(make: Any, size: int) -> None:
    image = np.asarray(stored(make((64, 48), (8, 10, 20, 30)), size, quality=100).resize((64, 48)), int)
    shown = np.full((48, 64, 3), 255)
    shown[10:40, 8:28] = (255, 0, 0)
    assert np.abs(image - shown).mean() < (12 if size == 16 else 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_stored_as_its_first_frame(kind: str) -> None:
    black = Image.new("RGB", SIZE)
    data = encoded(picture(), kind, save_all=True, append_images=[black, black], duration=100)
    first = Image.open(io.BytesIO(data)).convert("RGB")
    assert distance(stored(data), first) < 3


def test_an_animated_png_is_not_stored_as_the_image_for_viewers_without_animation() -> None:
    black = Image.new("RGB", SIZE)
    data = encoded(black, "PNG", save_all=True, default_image=True, append_images=[picture(), black], duration=100)
    assert distance(stored(data), picture()) < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_never_stored(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    message = refusal_message(data[: int(len(data) * share)])
    assert message.startswith(("truncated", "cannot be decoded"))
    assert kind not in ("JPEG", "PNG", "WEBP") or message == "truncated"


def test_an_end_marker_in_a_thumbnail_does_not_hide_a_truncated_image() -> None:
    thumbnail = encoded(picture().resize((30, 20)), "JPEG")
    picture_alone = encoded(picture(), "JPEG")
    segment = b"\xff\xfe" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    data = picture_alone[:2] + segment + picture_alone[2:]
    assert distance(stored(data), Image.open(io.BytesIO(picture_alone))) < 1
    assert refusal_message(data[: len(data) - 600]) == "truncated"


def test_bytes_after_the_end_of_a_jpeg_are_ignored() -> None:
    data = encoded(picture(), "JPEG")
    assert distance(stored(data + bytes(100) + b"trailing junk"), Image.open(io.BytesIO(data))) < 1


def test_too_many_pixels_are_refused_before_decoding() -> None:
    """A PNG of under 1 MB that decodes to 768 MB takes almost no memory and time, measured in its own process."""
    code = """
import sys, time
from lotlip_data.pipeline.downloading.images.conversion import convert
from lotlip_data.pipeline.downloading.images.messages import ConversionSettings
from lotlip_data.pipeline.downloading.failures import FetchError
from tests.pipeline.peak_memory import peak_memory_bytes
data = sys.stdin.buffer.read()
before, started = peak_memory_bytes(), time.process_time()
try:
    convert(data, ConversionSettings(), print)
except FetchError as refusal:
    print(refusal)
print(peak_memory_bytes() - before, time.process_time() - started)
"""
    side = 16_000
    compressor = zlib.compressobj(9)
    pixels = b"".join(compressor.compress(bytes(1 + 3 * side)) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert len(data) < 1_000_000
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=data, capture_output=True, check=True)
    message, figures = child.stdout.decode().splitlines()
    memory, seconds = map(float, figures.split())
    assert message == "too many pixels: 16000 × 16000"
    assert memory < 32 * 2**20
    assert seconds < 2


@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged files
def test_random_damage_raises_only_fetch_errors() -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"):
        intact = np.frombuffer(encoded(picture(), kind, exif=exif), np.uint8)
        for _ in range(40):
            data = intact.copy()
            data[rng.integers(0, min(len(data), 400), 6)] = rng.integers(0, 256, 6)
            try:
                converted(data.tobytes())
            except FetchError:
                continue
