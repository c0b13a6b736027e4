"""The structure of a WebP file: whether its first picture is whole, and the file without what decoders stumble over."""

import struct
from collections.abc import Iterator

_PICTURES = frozenset({b"VP8 ", b"VP8L", b"ANMF"})
_ORDER = (b"VP8X", b"ICCP", b"ANIM", b"ALPH", *sorted(_PICTURES))
_EXIF_AND_XMP = 0x0C
_ANIMATION, _ALPHA = 0x02, 0x10


class TruncatedError(ValueError):
    """The first picture is not whole."""


def is_animated(data: bytes) -> bool:
    """Whether the file has several pictures."""
    return data[12:16] == b"VP8X" and len(data) > 20 and bool(data[20] & _ANIMATION)


def with_alpha(data: bytes) -> bytes:
    """An animation as one that has transparent pixels, which are where its first picture does not reach."""
    return data[:20] + bytes([data[20] | _ALPHA]) + data[21:]


def repaired(data: bytes) -> bytes:
    """The file itself if it is well-formed; else a file with its first picture and what that needs.

    Raises:
        TruncatedError: The first picture is not whole.
    """
    chunks = list(_chunks(data))
    pictures = [index for index, (name, _, is_whole) in enumerate(chunks) if name in _PICTURES and is_whole]
    if not pictures:
        raise TruncatedError
    declared_end = int.from_bytes(data[4:8], "little") + 8
    if all(is_whole for _, _, is_whole in chunks) and declared_end <= len(data) and _covers(chunks, declared_end):
        return data
    kept = []
    for name, content, is_whole in chunks[: pictures[0] + 1]:
        if name in _ORDER and is_whole:
            if name == b"VP8X" and content:
                content = bytes([content[0] & ~_EXIF_AND_XMP]) + content[1:]
            kept.append(name + struct.pack("<I", len(content)) + content + bytes(len(content) & 1))
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _covers(chunks: list[tuple[bytes, bytes, bool]], declared_end: int) -> bool:
    """Whether the size of the file that it states includes all chunks."""
    return 12 + sum(8 + len(content) + (len(content) & 1) for _, content, _ in chunks) <= declared_end + 1


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Name, content and whether it is whole, for each chunk, whatever size the file states."""
    at = 12
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if not all(32 <= byte < 127 for byte in name):
            return
        content = data[at + 8 : at + 8 + length]
        yield name, content, len(content) == length
        at += 8 + length + (length & 1)
