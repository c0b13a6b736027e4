"""The structure of a JPEG file: whether its pixels are whole, and how to make decoders accept it.

libjpeg skips bytes between segments that belong to none, and so does this module.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

START = b"\xff\xd8\xff"
END = b"\xff\xd9"
FILLERS = (b"", bytes(64), b"\xaa" * 64, b"\x35" * 64)
"""What to put between the data and the end mark that it lacks. Pixels that are whole do not depend on it."""

_SCAN = 0xDA
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_SCAN_END = re.compile(rb"\xff+([\x01-\xcf\xd9-\xfe])")
_LAST_COEFFICIENT = 63


@dataclass(frozen=True)
class Segment:
    """A segment: `data[start:end]`, marker included."""

    marker: int
    start: int
    end: int


def segments(data: bytes) -> Iterator[Segment]:
    """The segments from the one after the start mark on. What follows the first damaged one is missing."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        marker = data[at + 1]
        if marker in (0x00, 0xFF):  # no marker, or a fill byte before one
            at += 1 + (marker == 0x00)
        elif marker in _WITHOUT_LENGTH:
            at += 2
        elif marker == END[1]:
            yield Segment(marker, at, at + 2)
            return
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if length < 2 or at + 2 + length > len(data):
                return
            yield Segment(marker, at, at + 2 + length)
            at += 2 + length
            if marker == _SCAN and (match := _SCAN_END.search(data, at)):
                at = match.start()
            elif marker == _SCAN:
                return


def is_progressive(data: bytes) -> bool:
    """Whether the coefficients of the whole image are in memory while it is decoded."""
    frame = next((segment for segment in segments(data) if segment.marker in _FRAMES), None)
    return frame is not None and frame.marker in _PROGRESSIVE


def has_end(data: bytes) -> bool:
    """Whether an end mark follows the start of the first scan. That of a thumbnail precedes it and does not count."""
    scan = next((segment for segment in segments(data) if segment.marker == _SCAN), None)
    return scan is not None and data.rfind(END) >= scan.end


def has_all_scans(data: bytes) -> bool:
    """Whether the scans hold every bit of every coefficient. Call it for a file without an end mark."""
    frame: Segment | None = None
    exact: dict[int, set[int]] = {}
    for segment in segments(data):
        content = data[segment.start + 4 : segment.end]
        if segment.marker in _FRAMES and frame is None:
            frame = segment
            exact = {content[6 + 3 * index]: set() for index in range(content[5])}
        elif segment.marker == _SCAN:
            count = content[0]
            first, last, bits = content[1 + 2 * count : 4 + 2 * count]
            for component in content[1 : 1 + 2 * count : 2]:
                if frame is not None and frame.marker not in _PROGRESSIVE:
                    exact.setdefault(component, set()).update(range(_LAST_COEFFICIENT + 1))
                elif bits & 15 == 0:
                    exact.setdefault(component, set()).update(range(first, last + 1))
    return bool(exact) and all(len(coefficients) > _LAST_COEFFICIENT for coefficients in exact.values())


def before_end(data: bytes) -> bytes | None:
    """The data before the end mark. None if it cannot be told where that is."""
    end = next((segment for segment in segments(data) if segment.marker == END[1]), None)
    return None if end is None else data[: end.start]


def without_end(data: bytes) -> bytes:
    """The data without the half of an end mark at its end."""
    return data.rstrip(b"\xff")


def without_metadata(data: bytes) -> bytes:
    """The file without the segments that no decoder needs: for readers that stumble over them."""
    pieces, kept_until = [data[:2]], 2
    for segment in segments(data):
        pieces.append(b"" if _is_metadata(segment, data) else data[kept_until : segment.end])
        kept_until = segment.end
        if segment.marker == _SCAN:
            break
    return b"".join([*pieces, data[kept_until:]])


def _is_metadata(segment: Segment, data: bytes) -> bool:
    """Comments, and APP segments other than those that say how the components are coded."""
    if segment.marker == 0xFE:
        return True
    return 0xE1 <= segment.marker <= 0xEF and data[segment.start + 4 : segment.start + 9] != b"Adobe"
