"""What browsers, libjpeg and OpenCV show whole is stored, whatever else is wrong with the file."""

import functools
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from lotlip_data.pipeline.downloading.images import jpeg
from lotlip_data.pipeline.downloading.images.png import Png
from tests.pipeline.downloading.images.test_conversion import chunk, distance, encoded, picture, refusal_message, stored

SIGNATURE, END = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
Damage = Callable[[], bytes]


@functools.cache
def noisy() -> Image.Image:
    noise = np.random.default_rng(0).integers(-20, 21, (80, 120, 1))
    return Image.fromarray((np.asarray(picture(), int) + noise).clip(0, 255).astype(np.uint8))


@functools.cache
def original(kind: str) -> bytes:
    options = {"JPEG": {"quality": 90}, "progressive": {"quality": 90, "progressive": True}, "WEBP": {"quality": 90}}
    image = noisy().convert("CMYK") if kind == "CMYK" else noisy()
    return encoded(image, "JPEG" if kind in ("progressive", "CMYK") else kind, **options.get(kind, {}))


def segments(data: bytes) -> list[jpeg.Segment]:
    return list(jpeg.segments(data))


def spliced(data: bytes, at: int, extra: bytes) -> bytes:
    return data[:at] + extra + data[at:]


def stray_bytes(index: int, extra: bytes) -> bytes:
    data = original("JPEG")
    return spliced(data, segments(data)[index].start, extra)


def app(marker: int, content: bytes) -> bytes:
    segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    return spliced(original("JPEG"), 2, segment)


def restarts() -> tuple[bytearray, list[int]]:
    data = bytearray(encoded(noisy(), "JPEG", quality=90, restart_marker_blocks=4))
    return data, [at for at in range(len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]


def wrong_restart() -> bytes:
    data, markers = restarts()
    data[markers[3] + 1] ^= 3
    return bytes(data)


@functools.cache
def png_parts() -> tuple[bytes, bytes]:
    """The header chunk, and the compressed pixels."""
    data = original("PNG")
    pixels, at = b"", 33
    while data[at + 4 : at + 8] != b"IEND":
        length = int.from_bytes(data[at : at + 4], "big")
        pixels += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    return data[8:33], pixels


def png(*before: bytes, pixels: bytes | None = None, after: bytes = END) -> bytes:
    header, compressed = png_parts()
    return SIGNATURE + header + b"".join(before) + (pixels or chunk(b"IDAT", compressed)) + after


def damaged_crc(whole: bytes) -> bytes:
    return whole[:-1] + bytes([whole[-1] ^ 1])


def pixels_with(change: Callable[[bytes], bytes]) -> bytes:
    return chunk(b"IDAT", change(png_parts()[1]))


def split_pixels(between: bytes) -> bytes:
    _, pixels = png_parts()
    return png(pixels=chunk(b"IDAT", pixels[:999]) + between + chunk(b"IDAT", pixels[999:]))


def frame(number: int) -> bytes:
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 120, 80, 0, 0, 1, 10, 0, 0))


def rows_with(kind: Image.Image, count: int) -> bytes:
    """A PNG that has only its first rows, with a right checksum."""
    data = encoded(kind, "PNG", compress_level=0)
    at = data.find(b"IDAT")
    pixels = zlib.decompress(data[at + 4 : at + 4 + int.from_bytes(data[at - 4 : at], "big")])
    kept = pixels[: count * len(pixels) // kind.height]
    return data[: at - 4] + chunk(b"IDAT", zlib.compress(kept)) + END


def cut_with_end(kind: str, length: int) -> bytes:
    """A JPEG with `length` bytes of its first scan, and an end mark."""
    data = original(kind)
    scan = next(segment for segment in segments(data) if segment.marker == 0xDA)
    return data[: scan.end + length] + jpeg.END


def taller() -> bytes:
    """A JPEG whose header states more rows than the file has."""
    data = original("JPEG")
    at = next(segment.start for segment in segments(data) if segment.marker == 0xC0)
    return data[: at + 5] + struct.pack(">H", 112) + data[at + 7 :]


def webp_with_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description" * 20
    return encoded(noisy(), "WEBP", quality=90, exif=exif)


def animated(kind: str) -> bytes:
    return encoded(noisy(), kind, save_all=True, append_images=[picture(), noisy()], duration=100)


WHOLE: dict[str, tuple[str, Damage]] = {
    **{
        f"stray bytes before segment {index}": ("JPEG", functools.partial(stray_bytes, index, b"\x00\x12\x34"))
        for index in (1, 2, 3, 5)
    },
    "a stray escaped 255": ("JPEG", lambda: stray_bytes(-2, b"\xff\x00\x01")),
    "fill bytes": ("JPEG", lambda: stray_bytes(2, b"\xff\xff\xff")),
    "no end mark": ("JPEG", lambda: original("JPEG")[:-2]),
    "half an end mark": ("JPEG", lambda: original("JPEG")[:-1]),
    "zeros for the end mark": ("JPEG", lambda: original("JPEG")[:-2] + bytes(50)),
    "no end mark, progressive": ("progressive", lambda: original("progressive")[:-2]),
    "two end marks": ("JPEG", lambda: original("JPEG") + b"\xff\xd9"),
    "junk after the end": ("JPEG", lambda: original("JPEG") + b"<html>" * 20),
    "a wrong restart marker": ("JPEG", wrong_restart),
    "restart markers, no end mark": ("JPEG", lambda: bytes(restarts()[0][:-2])),
    "broken EXIF": ("JPEG", lambda: app(0xE1, b"Exif\0\0" + b"\xff" * 40)),
    "a broken profile": ("JPEG", lambda: app(0xE2, b"ICC_PROFILE\0\x05\x02" + b"\xff" * 24)),
    "a broken index of further pictures": ("JPEG", lambda: app(0xE2, b"MPF\0" + b"\xff" * 34)),
    "broken Photoshop data": ("JPEG", lambda: app(0xED, b"Photoshop 3.0\0008BIM\4\4\0\0\xff\xff\xff\xff" + b"\1" * 34)),
    "an empty segment": ("JPEG", lambda: app(0xE0, b"")),
    "no IEND": ("PNG", lambda: png(after=b"")),
    "half an IEND": ("PNG", lambda: png(after=END[:6])),
    "no CRC of the pixels": ("PNG", lambda: png(after=b"")[:-2]),
    "no checksum of the pixels": ("PNG", lambda: png(pixels=pixels_with(lambda pixels: pixels[:-4]))),
    "a wrong checksum": ("PNG", lambda: png(pixels=pixels_with(lambda pixels: pixels[:-1] + b"x"))),
    "a wrong CRC of the pixels": ("PNG", lambda: png(pixels=damaged_crc(pixels_with(lambda pixels: pixels)))),
    "a wrong CRC of IEND": ("PNG", lambda: png(after=damaged_crc(END))),
    **{
        f"a wrong CRC of {name.decode()}": ("PNG", functools.partial(png, damaged_crc(chunk(name, bytes(9)))))
        for name in (b"pHYs", b"gAMA", b"tEXt", b"tIME", b"acTL", b"iCCP", b"eXIf", b"tRNS", b"cICP")
    },
    **{
        f"a short {name.decode()}": ("PNG", functools.partial(png, chunk(name, b"\1")))
        for name in (b"pHYs", b"tIME", b"cHRM", b"gAMA", b"tRNS", b"bKGD")
    },
    "4 MB of text": ("PNG", lambda: png(chunk(b"tEXt", b"a\0" + b"x" * 4_000_000))),
    "4 MB of compressed text": ("PNG", lambda: png(chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 4_000_000)))),
    "4 MB of other text": ("PNG", lambda: png(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"x" * 4_000_000)))),
    "4 MB of EXIF": ("PNG", lambda: png(chunk(b"eXIf", b"MM\0*" + b"x" * 4_000_000))),
    "a profile that grows to 64 MB": ("PNG", lambda: png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(64_000_000))))),
    "junk after the pixels": ("PNG", lambda: png(after=b"junkjunkjunk" * 3)),
    "more pixels than rows": ("PNG", lambda: png(after=chunk(b"IDAT", b"more") + END)),
    "an animation without frames": ("PNG", lambda: png(chunk(b"acTL", struct.pack(">II", 3, 0)))),
    "text between the pixels": ("PNG", lambda: split_pixels(chunk(b"tEXt", b"a\0b"))),
    "a frame without an animation": ("PNG", lambda: png(after=frame(0) + END)),
    "an animation without its frame": ("PNG", lambda: png(chunk(b"acTL", bytes(3) + b"\1" * 5), after=frame(0) + END)),
    "an animation cut in its second frame": ("PNG", lambda: animated("PNG")[: animated("PNG").find(b"fdAT") + 99]),
    "cut EXIF": ("WEBP", lambda: webp_with_exif()[:-30]),
    "no EXIF although announced": ("WEBP", lambda: webp_with_exif().partition(b"EXIF")[0]),
    "an EXIF chunk of 2 GB": ("WEBP", lambda: webp_with_exif().partition(b"EXIF")[0] + b"EXIF\xff\xff\xff\x7faa"),
    "too small a size": ("WEBP", lambda: original("WEBP")[:4] + struct.pack("<I", 100) + original("WEBP")[8:]),
    "too large a size": ("WEBP", lambda: original("WEBP")[:4] + struct.pack("<I", 1 << 20) + original("WEBP")[8:]),
    "junk after a WebP": ("WEBP", lambda: original("WEBP") + b"junkjunk"),
    "a cut animation": ("WEBP", lambda: animated("WEBP")[:-100]),
    "no trailer": ("GIF", lambda: original("GIF")[:-1]),
    "no end of the pixels": ("GIF", lambda: original("GIF")[:-2]),
    "a cut second frame": ("GIF", lambda: animated("GIF")[:-2000]),
    "junk after an AVIF": ("AVIF", lambda: original("AVIF") + b"junkjunkjunk"),
}  # fmt: skip
"""What is wrong → the format of the intact file, and the damaged file."""


@pytest.mark.parametrize("damage", WHOLE)
def test_a_file_whose_picture_is_whole_is_stored(damage: str) -> None:
    kind, make = WHOLE[damage]
    intact = animated("GIF") if damage == "a cut second frame" else original(kind)
    intact = animated("WEBP") if damage == "a cut animation" else intact
    shown = Image.open(io.BytesIO(intact)).convert("RGB")
    assert distance(stored(make(), quality=100), shown) < 5
    assert distance(stored(make()), stored(intact)) < 0.5


TRUNCATED: dict[str, Damage] = {
    "the last byte of the pixels": lambda: original("JPEG")[:-3],
    "the last rows": lambda: original("JPEG")[:-30],
    "the last rows, with restart markers": lambda: bytes(restarts()[0][:-300]),
    "the last scan": lambda: original("progressive")[: segments(original("progressive"))[-2].start],
    "the end of a scan": lambda: original("progressive")[: segments(original("progressive"))[-2].start - 9],
    "all scans": lambda: original("JPEG")[: segments(original("JPEG"))[-2].start],
    "half of the data before an end mark": lambda: cut_with_end("JPEG", len(original("JPEG")) // 2),
    "most of the first scan before an end mark": lambda: cut_with_end("progressive", 60),
    "half of the data of four inks before an end mark": lambda: cut_with_end("CMYK", len(original("CMYK")) // 2),
    "rows that the header of a JPEG states": taller,
    "rows of an opaque PNG": lambda: rows_with(noisy(), 79),
    "rows of a transparent PNG": lambda: rows_with(noisy().convert("RGBA"), 40),
    "the last IDAT": lambda: png(pixels=pixels_with(lambda pixels: pixels[:-60]), after=b""),
    "the middle of a PNG": lambda: png(pixels=pixels_with(lambda pixels: pixels[: len(pixels) // 2])),
    "the pixels of a PNG": lambda: png(pixels=b" ", after=b""),
    "the last byte of a WebP": lambda: original("WEBP")[:-1],
    "the first frame of a WebP": lambda: animated("WEBP")[:1500],
    "the rows of a GIF": lambda: original("GIF")[:-900],
    "the last byte of an AVIF": lambda: original("AVIF")[:-1],
}


@pytest.mark.parametrize("missing", TRUNCATED)
def test_a_file_whose_picture_is_not_whole_is_truncated(missing: str) -> None:
    assert refusal_message(TRUNCATED[missing]()) == "truncated"


def test_a_corner_that_is_grey_or_transparent_does_not_count_as_missing() -> None:
    grey = noisy()
    grey.paste((128, 128, 128), (0, 60, 120, 80))
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}):
        data = encoded(grey, "JPEG", quality=95, **options)
        assert np.asarray(Image.open(io.BytesIO(data)))[-1, -1].tolist() == [128, 128, 128]
        assert distance(stored(data), grey) < 5
    clear = noisy().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 60, 120, 80))
    for image in (clear, clear.convert("LA"), Image.new("RGBA", (7, 3)), Image.new("1", (9, 5))):
        assert stored(encoded(image, "PNG")).size == image.size


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("color_type", [0, 2, 3, 4, 6])
def test_the_size_of_the_rows_of_a_png_is_known(color_type: int, bits: int) -> None:
    passes = ([(9, 6)], [(2, 1), (1, 1), (3, 1), (2, 2), (5, 1), (4, 3), (9, 3)])
    pixel = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    for interlaced, images in enumerate(passes):
        size = sum(rows * (1 + (columns * pixel + 7) // 8) for columns, rows in images)
        for missing in (0, 1):
            file = Png(struct.pack(">IIBBBBB", 9, 6, bits, color_type, 0, 0, interlaced))
            file.pixels.append(memoryview(zlib.compress(bytes(size - missing))))
            assert file.has_all_rows() == (missing == 0)


def test_a_png_that_browsers_refuse_cannot_be_decoded() -> None:
    header, _ = png_parts()
    palette = SIGNATURE + chunk(b"IHDR", header[8:17] + b"\3\0\0\0") + pixels_with(bytes) + END
    assert refusal_message(png(chunk(b"CgBI", bytes(4)))) == "cannot be decoded: unknown critical chunk CgBI"
    assert (
        refusal_message(SIGNATURE + damaged_crc(header) + pixels_with(bytes) + END)
        == "cannot be decoded: no valid header"
    )
    assert refusal_message(palette) == "cannot be decoded: no palette"
