"""The structure of a PNG file: what is needed to show it, in a form that every decoder accepts.

Browsers ignore what they do not need: a wrong CRC, text, chunks after the pixels, a missing end. Decoders are stricter,
each in its own way. So the chunks that matter are written again.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from lotlip_data.pipeline.downloading.images import color

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_UNCHECKED = frozenset({b"IDAT", b"tEXt", b"zTXt", b"iTXt"})
_END = b"\0\0\0\0IEND\xaeB`\x82"
_MAX_PROFILE_BYTES = 16 << 20
_HEADER_BYTES = 13
_PIECE_BYTES = 1 << 18
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels per pixel by colour type."""
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The passes of an interlaced image: the first column and row, and the steps to the next ones."""
_SRGB_GAMMA = 45455
_SIGNIFICANT_SHARE = 0.05
_SRGB_CHROMATICITIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


class PngError(ValueError):
    """The file cannot be shown. The text says why."""


@dataclass
class Png:
    """The chunks that matter."""

    header: bytes
    palette: bytes = b""
    transparency: bytes = b""
    pixels: list[memoryview] = field(default_factory=list)
    """The contents of the IDAT chunks."""
    exif: bytes = b""
    color: dict[bytes, bytes] = field(default_factory=dict)
    """The first chunk of each kind that describes the colours, with a right CRC."""
    frames: int = 0
    """Number of frames of the animation, as its acTL chunk states it. 0 for a still image."""
    frames_before_pixels: int = 0
    frames_after_pixels: int = 0
    """Frames of an animation, by where they are announced."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = struct.unpack(">II", self.header[:8])
        return width, height

    @property
    def has_default_image(self) -> bool:
        """Whether it is an animation whose first frame is not the image in the IDAT chunks."""
        return self.frames > 0 and self.frames_after_pixels > 0 and not self.frames_before_pixels

    @property
    def bits(self) -> int:
        """Bits per channel."""
        return self.header[8]

    @property
    def color_type(self) -> int:
        """0: grey, 2: RGB, 3: palette, 4: grey and alpha, 6: RGBA."""
        return self.header[9]

    def file(self, pixels: bytes | None = None) -> bytes:
        """A PNG file with the header, the palette, the transparency and the pixels, whose CRCs are right."""
        chunks = [SIGNATURE, _chunk(b"IHDR", self.header)]
        if self.color_type == 3:
            chunks.append(_chunk(b"PLTE", self.palette))
        if self.transparency and self.has_valid_transparency():
            chunks.append(_chunk(b"tRNS", self.transparency))
        return b"".join([*chunks, _chunk(b"IDAT", b"".join(self.pixels) if pixels is None else pixels), _END])

    def has_valid_transparency(self) -> bool:
        """Whether the tRNS chunk has the length that the colour type demands."""
        length = len(self.transparency)
        return (self.color_type == 3 and length <= len(self.palette) // 3) or length == {0: 2, 2: 6}.get(
            self.color_type
        )

    def with_checksum(self) -> bytes:
        """As `file`, with the checksum of the compressed pixels computed again. Decompresses them, piece by piece.

        Raises:
            zlib.error: The compressed pixels are damaged.
        """
        stream = b"".join(self.pixels)
        decompressor, checksum, end = zlib.decompressobj(-15), 1, len(stream)
        for start in range(2, len(stream), _PIECE_BYTES):
            waiting = stream[start : start + _PIECE_BYTES]
            while waiting and not decompressor.eof:
                checksum = zlib.adler32(decompressor.decompress(waiting, _PIECE_BYTES), checksum)
                waiting = decompressor.unconsumed_tail
            if decompressor.eof:
                end = min(start + _PIECE_BYTES, len(stream)) - len(decompressor.unused_data)
                break
        return self.file(stream[:end] + checksum.to_bytes(4, "big"))

    def has_all_rows(self) -> bool:
        """Whether the compressed pixels hold every row. Decompresses them, piece by piece.

        Raises:
            zlib.error: The compressed pixels are damaged.
        """
        decompressor, missing = zlib.decompressobj(), self._uncompressed_bytes()
        for piece in self.pixels:
            waiting: bytes | memoryview = piece
            while waiting and missing > 0 and not decompressor.eof:
                missing -= len(decompressor.decompress(waiting, _PIECE_BYTES))
                waiting = decompressor.unconsumed_tail
        return missing <= 0

    def _uncompressed_bytes(self) -> int:
        """Size of all rows, each with the byte that names its filter."""
        (width, height), bits = self.size, self.bits * _CHANNELS.get(self.color_type, 1)
        passes = _ADAM7 if self.header[12] else ((0, 0, 1, 1),)
        sides = ((-(-(width - x) // x_step), -(-(height - y) // y_step)) for x, y, x_step, y_step in passes)
        return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sides if columns > 0 and rows > 0)

    def profiles(self) -> list[bytes]:
        """ICC profiles that say how the colours are meant, the one with precedence first. Empty for sRGB."""
        candidates = list[bytes]()
        coding = self.color.get(b"cICP", b"")
        if len(coding) == 4 and coding[2:] == b"\0\1" and (profile := color.coded_profile(coding[0], coding[1])):
            return [profile]
        if embedded := _embedded_profile(self.color.get(b"iCCP", b"")):
            candidates.append(embedded)
        if b"sRGB" in self.color:
            candidates.append(color.SRGB)
        elif described := _described_profile(self.color.get(b"gAMA", b""), self.color.get(b"cHRM", b"")):
            candidates.append(described)
        return candidates


def read_png(data: bytes) -> Png:
    """Read the chunks of a PNG file up to its last pixels. A missing end is no error.

    Raises:
        PngError: The header is damaged, or a chunk is critical and unknown.
    """
    png: Png | None = None
    for name, content, is_intact in _chunks(data):
        if png is None:
            if name != b"IHDR" or len(content) != _HEADER_BYTES or not is_intact:
                raise PngError("no valid header")
            png = Png(bytes(content))
        elif name == b"IDAT":
            png.pixels.append(content)
        elif name == b"PLTE" and not png.pixels:
            png.palette = bytes(content)
        elif not name[0] & 0x20 and name not in _CRITICAL:
            raise PngError(f"unknown critical chunk {name.decode('ascii', 'replace')}")
        elif is_intact:
            _add_ancillary(png, name, content)
    if png is None:
        raise PngError("no valid header")
    if png.color_type == 3 and not png.palette:
        raise PngError("no palette")
    return png


def _add_ancillary(png: Png, name: bytes, content: memoryview) -> None:
    if name in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM") and not png.pixels:
        png.color.setdefault(name, bytes(content))
    elif name == b"tRNS" and not png.pixels:
        png.transparency = bytes(content)
    elif name == b"eXIf" and not png.pixels:  # browsers ignore one after the pixels
        png.exif = png.exif or bytes(content)
    elif name == b"acTL" and not png.pixels and len(content) == 8:
        png.frames = int.from_bytes(content[:4], "big")
    elif name == b"fcTL" and png.pixels:
        png.frames_after_pixels += 1
    elif name == b"fcTL":
        png.frames_before_pixels += 1


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Name, content and whether the CRC is right, for each chunk up to the end, or to bytes that are no chunk.

    The content of an IDAT chunk that is cut off ends early.
    """
    view, at = memoryview(data), len(SIGNATURE)
    while at + 8 <= len(data):
        length, name = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if name == b"IEND" or not name.isalpha() or (end > len(data) and name != b"IDAT"):
            return
        content = view[at + 8 : end]
        crc = int.from_bytes(view[end : end + 4], "big")
        yield name, content, name not in _UNCHECKED and zlib.crc32(view[at + 4 : end]) == crc
        at = end + 4


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _embedded_profile(chunk: bytes) -> bytes:
    """The ICC profile of an iCCP chunk; empty if there is none. Bytes after the size that it states are left out."""
    _, separator, compressed = chunk.partition(b"\0")
    if not separator or compressed[:1] != b"\0":
        return b""
    try:
        profile = zlib.decompressobj().decompress(compressed[1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return b""
    size = int.from_bytes(profile[:4], "big")
    return profile[:size] if 128 < size <= len(profile) else b""


def _described_profile(gamma: bytes, chromaticities: bytes) -> bytes | None:
    """The profile that the chunks gAMA and cHRM describe. None for sRGB, and without gAMA."""
    if len(gamma) != 4 or not (value := int.from_bytes(gamma, "big")):
        return None
    is_complete = len(chromaticities) == 32
    if not is_complete and abs(value / _SRGB_GAMMA - 1) < _SIGNIFICANT_SHARE:
        return None
    white_first = struct.unpack(">8I", chromaticities) if is_complete else _SRGB_CHROMATICITIES
    x_y = [(x / 1e5, y / 1e5) for x, y in zip(white_first[::2], white_first[1::2], strict=True)]
    try:
        profile = color.rgb_profile([*x_y[1:], x_y[0]], [1e5 / value])
    except (ValueError, struct.error):  # the chromaticities span no colour space, or the exponent is out of range
        return None
    return profile
