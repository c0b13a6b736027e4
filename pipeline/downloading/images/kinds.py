"""Recognizes what a body is by its first bytes: an image of a supported format, another image, or something else."""

import importlib.util
import re
from dataclasses import dataclass

SUPPORTED = frozenset({"jpeg", "png", "gif", "webp", "bmp", "tiff", "avif", "jpeg2000"})
_IMAGES = SUPPORTED | {
    *(
        "heic",
        "jxl",
        "jxr",
        "psd",
        "ico",
        "cur",
        "icns",
        "svg",
        "eps",
        "wmf",
        "emf",
        "djvu",
        "dds",
        "exr",
        "hdr",
        "pnm",
    ),
    *("qoi", "flif", "bpg", "cr3", "raf", "orf", "rw2", "pcx", "xcf", "mng", "jng", "xbm", "xpm"),
}


@dataclass(frozen=True)
class Kind:
    """What a body is. `name`: in lower case, `text` or `unknown` if nothing says more."""

    name: str

    @property
    def is_image(self) -> bool:
        """Whether it is an image of any format."""
        return self.name in _IMAGES

    @property
    def is_supported(self) -> bool:
        """Whether it is an image that can be decoded. HEIC needs the package pillow-heif."""
        return self.name in SUPPORTED or (self.name == "heic" and has_heif())


def has_heif() -> bool:
    """Whether pillow-heif is installed (the extra `heif`)."""
    return importlib.util.find_spec("pillow_heif") is not None


_SIGNATURES: tuple[tuple[str, bytes], ...] = (
    ("jpeg", rb"\xff\xd8\xff"),
    ("png", rb"\x89PNG\r\n\x1a\n"),
    ("gif", rb"GIF8[79]a"),
    ("webp", rb"RIFF....WEBP"),
    ("bmp", rb"BM.{4}\0{4}|BM.{8}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    ("jpeg2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("jxl", rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a"),
    ("jxr", rb"II\xbc"),
    ("orf", rb"IIR[OS]|MMOR"),
    ("rw2", rb"IIU\0"),
    ("tiff", rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"),
    ("raf", rb"FUJIFILMCCD-RAW"),
    ("psd", rb"8BP[SB]\0[\x01\x02]"),
    ("ico", rb"\0\0\x01\0[^\0]"),
    ("cur", rb"\0\0\x02\0[^\0]"),
    ("icns", rb"icns"),
    ("eps", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("wmf", rb"\xd7\xcd\xc6\x9a"),
    ("emf", rb"\x01\0\0\0.{36} EMF"),
    ("djvu", rb"AT&TFORM"),
    ("dds", rb"DDS "),
    ("exr", rb"\x76\x2f\x31\x01"),
    ("hdr", rb"#\?(?:RADIANCE|RGBE)"),
    ("pnm", rb"P[1-7fF][\s#]"),
    ("qoi", rb"qoif"),
    ("flif", rb"FLIF"),
    ("bpg", rb"BPG\xfb"),
    ("xcf", rb"gimp xcf"),
    ("mng", rb"\x8aMNG\r\n\x1a\n"),
    ("jng", rb"\x8bJNG\r\n\x1a\n"),
    ("pcx", rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08]"),
    ("xpm", rb"/\* XPM \*/"),
    ("xbm", rb"#define\s+\w+_width\s"),
    ("video", rb"\x1aE\xdf\xa3|RIFF....AVI |FLV\x01|OggS|\0\0\x01[\xb3\xba]|0&\xb2u\x8ef\xcf\x11|G.{187}G"),
    ("audio", rb"ID3|fLaC|RIFF....WAVE|\xff[\xfb\xf3\xf2]|FORM....AIF|MThd"),
    ("pdf", rb"\s*%PDF"),
    ("zip", rb"PK[\x03\x05\x07][\x04\x06\x08]"),
    ("gzip", rb"\x1f\x8b"),
    ("zstd", rb"\x28\xb5\x2f\xfd"),
    ("bzip2", rb"BZh[1-9]"),
    ("xz", rb"\xfd7zXZ\0"),
    ("rar", rb"Rar!\x1a\x07"),
    ("7z", rb"7z\xbc\xaf\x27\x1c"),
    ("flash", rb"[CFZ]WS[\x01-\x40]"),
    ("font", rb"wOF[F2]|OTTO\0|\0\x01\0\0\0[\x04-\x40]\0"),
    ("rtf", rb"\{\\rtf"),
    ("office", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
)
_PATTERNS = tuple((name, re.compile(pattern, re.DOTALL)) for name, pattern in _SIGNATURES)

_BRANDS = (
    ("avif", frozenset({b"avif", b"avis"})),
    ("heic", frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})),
    ("jxl", frozenset({b"jxl "})),
    ("jpeg2000", frozenset({b"jp2 ", b"jpx ", b"jph "})),
    ("cr3", frozenset({b"crx "})),
    ("audio", frozenset({b"M4A ", b"M4B ", b"F4A "})),
    ("heic", frozenset({b"mif1", b"msf1", b"mif2"})),  # last: AVIF files name these brands too
)
_HTML = re.compile(rb"<(?:!doctype html|html|head|body|script|title|meta|div|table|iframe|br|p|a|h1)[\s>/]|<!--")


def identify(data: bytes) -> Kind:
    """Recognize a body by its content."""
    for name, pattern in _PATTERNS:
        if pattern.match(data):
            return Kind(name)
    if data[4:8] == b"ftyp":
        return Kind(_iso_media(data))
    return Kind(_text(data[:4096]))


def _iso_media(data: bytes) -> str:
    """What a file of ISO base media boxes is, by its brands: the major one, then the compatible ones."""
    size = min(int.from_bytes(data[:4], "big"), 1024)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, size - 3, 4))]
    for candidates in (brands[:1], brands):
        for name, known in _BRANDS[:-1] if candidates is not brands else _BRANDS:
            if not known.isdisjoint(candidates):
                return name
    return "video"


def _text(head: bytes) -> str:
    """What a text is; `unknown` if it is none."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head.decode("utf-16", "ignore").encode()
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\f\0").lower()
    if _HTML.match(text) or b"<html" in text:
        return "html"
    if b"<svg" in text:
        return "svg"
    for start, name in ((b"<?xml", "xml"), (b"<rss", "xml"), (b"{", "json"), (b"[", "json"), (b"<?php", "php")):
        if text.startswith(start):
            return name
    decoded = text.decode("utf-8", "ignore")
    lossless = len(decoded.encode()) >= len(text) - 3  # a character may be cut at the end
    return "text" if text and lossless and all(c.isprintable() or c in "\t\r\n\f" for c in decoded) else "unknown"
