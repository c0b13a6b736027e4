"""Decodes a text list and cuts it into lines of a bounded length.

Text is UTF-8, with or without a byte order mark. Undecodable bytes become surrogates, which `cells.clean` replaces.
Lines end with LF or CR LF; with CR alone if the beginning of the file has no LF.
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from lotlip_data.pipeline.url_lists.files import SAMPLE_BYTES
from lotlip_data.pipeline.url_lists.rows import MAX_LINE_CHARACTERS, ListError

MAX_SKIPPED_CHARACTERS = 64 << 20
"""Length of a line, or of consecutive blank lines, after which a file counts as no list."""

_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_NUL_SHARE = 0.1
_SECOND_CELL = re.compile(r"https?://[^\t]*\t", re.I)


@dataclass(frozen=True)
class LongLine:
    """A line of more than `MAX_LINE_CHARACTERS`."""

    start: str
    """Its first characters."""


Line = str | LongLine


def newline_of(sample: bytes) -> str:
    r"""The character that ends the lines of a file with this beginning: `\n` or `\r`."""
    return "\r" if b"\n" not in sample and b"\r" in sample else "\n"


def check_encoding(sample: bytes, file: str) -> None:
    """Raise ListError if the beginning of the file is not in an encoding that UTF-8 contains."""
    if encoding := next((name for mark, name in _MARKS if sample.startswith(mark)), None):
        raise ListError(f"{file}: is {encoding}; convert it to UTF-8")
    start = sample[:4096]
    if start.count(0) > _NUL_SHARE * len(start):
        if max(start[::2].count(0), start[1::2].count(0)) > 0.9 * start.count(0) and start.count(0) < 0.6 * len(start):
            raise ListError(f"{file}: is UTF-16; convert it to UTF-8")
        raise ListError(f"{file}: is not a text file: it consists largely of NUL bytes")


def check_bare_urls(lines: Sequence[str], file: str) -> None:
    """Raise ListError if most of the first lines of a list of bare URLs have something else after the URL."""
    stripped = [line.strip() for line in lines]
    if 2 * sum(bool(_SECOND_CELL.match(line)) for line in stripped) > sum(map(bool, stripped)):
        raise ListError(
            f"{file}: most of its lines have more after the URL, separated by a tab; set `format: tsv` and `columns`"
        )


def sample_lines(sample: bytes) -> list[str]:
    """The lines of a sample; of one of full size without the last line, which can be cut,
    unless it is the only one."""
    text = sample.decode("utf-8-sig", "surrogateescape")
    lines = io.StringIO(text, newline=newline_of(sample)).readlines()
    return lines if len(sample) < SAMPLE_BYTES else lines[:-1] or lines


def text_lines(content: IO[bytes], sample: bytes, file: str) -> Iterator[Line]:
    """The lines of a text, with their line breaks.

    Args:
        content: The bytes of the text.
        sample: The first of them.
        file: Name of the file, for error messages.

    Raises:
        ListError: A line has more than `MAX_SKIPPED_CHARACTERS`, or so many consecutive lines are blank.
    """
    newline = newline_of(sample)
    text = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    number = blank = 0
    while line := text.readline(MAX_LINE_CHARACTERS):
        number += 1
        if line.isspace():
            blank += len(line)
            if blank > MAX_SKIPPED_CHARACTERS:
                raise ListError(f"{file}: has more than {MAX_SKIPPED_CHARACTERS >> 20} MiB of blank lines")
        else:
            blank = 0
        if len(line) == MAX_LINE_CHARACTERS and not line.endswith(newline):
            _skip_rest(text, newline, number, file)
            yield LongLine(line[:1000])
        else:
            yield line


def _skip_rest(text: io.TextIOWrapper, newline: str, number: int, file: str) -> None:
    skipped = MAX_LINE_CHARACTERS
    while (rest := text.readline(MAX_LINE_CHARACTERS)) and not rest.endswith(newline):
        skipped += len(rest)
        if skipped > MAX_SKIPPED_CHARACTERS:
            raise ListError(
                f"{file}: line {number} has more than {MAX_SKIPPED_CHARACTERS >> 20} MiB; this is not a list of rows"
            )
