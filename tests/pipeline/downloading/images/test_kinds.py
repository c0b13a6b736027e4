"""The reason for a body that is not stored says what it is: no image, or an image of an unsupported format."""

import io
import struct

import pytest
from PIL import Image

from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.images import kinds
from lotlip_data.pipeline.downloading.images.conversion import convert
from lotlip_data.pipeline.downloading.images.messages import ConversionSettings


def refusal(data: bytes) -> str:
    with pytest.raises(FetchError) as error:
        convert(data, ConversionSettings(), lambda memory: None)
    return str(error.value)


def brands(*names: bytes) -> bytes:
    return struct.pack(">I", 12 + 4 * len(names)) + b"ftyp" + names[0] + bytes(4) + b"".join(names[1:]) + bytes(64)


def saved(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data, kind",
    [
        (b"<!DOCTYPE html><html></html>", "html"), (b"\n  <HTML><head>", "html"), (b"<!-- x --><p>", "html"),
        (b"\xef\xbb\xbf<script>", "html"), ("<!doctype html>\n".encode("utf-16"), "html"),
        (b'<?xml version="1.0"?><rss/>', "xml"), (b'{"error": "not found"}', "json"), (b"%PDF-1.7", "pdf"),
        (b"\x1f\x8b\x08\0", "gzip"), (b"PK\x03\x04", "zip"), (b"Rar!\x1a\x07\0", "rar"),
        (brands(b"isom", b"iso2", b"mp41"), "video"), (brands(b"qt  "), "video"), (b"\x1aE\xdf\xa3webm", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"), (b"OggS\0", "video"), (brands(b"M4A "), "audio"), (b"ID3\x04", "audio"),
        (b"Not found.", "text"), ("Seite nicht verfügbar".encode(), "text"), (b"\0\1\2\3", "unknown"), (b"x", "text"),
    ],
)  # fmt: skip
def test_other_content_is_named(data: bytes, kind: str) -> None:
    assert refusal(data) == f"not an image: {kind}"


@pytest.mark.parametrize(
    "data, kind",
    [
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "svg"), (b"<svg>", "svg"),
        (b"\xff\x0a" + bytes(20), "jxl"), (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "jxl"), (brands(b"jxl "), "jxl"),
        (b"8BPS\0\1" + bytes(20), "psd"), (saved("ICO"), "ico"), (b"\0\0\x02\0\1\0" + bytes(20), "cur"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "eps"), (brands(b"crx "), "cr3"), (saved("PPM"), "pnm"), (saved("DDS"), "dds"),
        (b"FUJIFILMCCD-RAW 0201", "raf"), (b"gimp xcf v011\0", "xcf"), (b"qoif" + bytes(20), "qoi"),
        (b"II\xbc\x01" + bytes(20), "jxr"), (b"AT&TFORM\0\0\0\0DJVU", "djvu"), (b"#?RADIANCE\n", "hdr"),
    ],
)  # fmt: skip
def test_an_image_of_another_format_is_not_supported(data: bytes, kind: str) -> None:
    assert refusal(data) == f"format not supported: {kind}"


def test_heic_is_named_by_its_brand_and_the_message_says_how_to_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "has_heif", lambda: False)
    for names in ((b"heic", b"mif1"), (b"mif1", b"heic"), (b"mif1",), (b"hevc",), (b"msf1", b"hevc")):
        assert refusal(brands(*names)) == "format not supported: heic; install `lotlip-data[heif]` to read it"


def test_heic_is_read_where_pillow_heif_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 60))).save(stream, quality=90)
    result = convert(stream.getvalue(), ConversionSettings(), lambda memory: None)
    image = Image.open(io.BytesIO(result.body))
    assert image.size == (64, 48)
    assert max(abs(a - b) for a, b in zip(image.getpixel((30, 20)), (200, 30, 60), strict=True)) < 8  # type: ignore[arg-type]
    assert refusal(stream.getvalue()[:-100]) == "truncated"


def test_a_cut_avif_is_truncated_and_not_a_video() -> None:
    data = saved("AVIF")
    assert data[4:12] == b"ftypavif"
    for share in (0.5, 0.8, 0.99):
        assert refusal(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_a_damaged_image_of_a_supported_format_cannot_be_decoded(kind: str) -> None:
    data = saved(kind)
    message = refusal(data[:16] + b"\x55" * 400)
    assert message.startswith(("cannot be decoded: ", "truncated")), message
