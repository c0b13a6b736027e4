"""Reads CSV, TSV and lists of bare URLs.

A row that is malformed costs no other row: after a quote that is not closed, reading goes on at the next line. A cell
over several lines that contains another row's URL is such a quote, even if a later quote happens to close it. The line
with that later quote is malformed, too: it may be the rest of a text that holds a URL.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lotlip_data.pipeline.url_lists.rows import (
    LINE_TOO_LONG,
    MAX_LINE_CHARACTERS,
    NO_TEXTS_HINT,
    BadRow,
    ListError,
    Reject,
    Row,
    clip,
    positions,
)
from lotlip_data.pipeline.url_lists.text_lines import Line, LongLine

NO_HEADER_HINT = ". If its first row is not a header, name the columns in `columns`"
BARE_HINT = ". If it is a list of bare URLs, set `format: txt`"

csv.field_size_limit(MAX_LINE_CHARACTERS)  # of the whole process: the module has no other limit


@dataclass(frozen=True)
class Dialect:
    """How the cells of a row are written; the first fields are those of a manifest's source."""

    delimiter: str
    escape: str = '"'
    quoting: bool = True
    has_spaces: bool = False
    """Whether a space between a delimiter and a quote belongs to neither cell."""


@dataclass(frozen=True)
class MalformedRecord:
    """A row that cannot be parsed."""

    reason: str
    content: str


Record = list[str] | MalformedRecord


def records(lines: Iterator[Line], dialect: Dialect) -> Iterator[Record]:
    """The rows of a file as lists of cells. Blank lines are empty lists."""
    return _quoted_records(lines, dialect) if dialect.quoting else _plain_records(lines, dialect.delimiter)


def _plain_records(lines: Iterator[Line], delimiter: str) -> Iterator[Record]:
    for line in lines:
        if isinstance(line, LongLine):
            yield MalformedRecord(LINE_TOO_LONG, clip(line.start))
        elif line.isspace():
            yield []
        else:
            yield line.rstrip("\r\n").split(delimiter)


class _LineFeed:
    """The lines that `csv.reader` reads. It remembers those of the current record, which can be read again.

    Backslashes are doubled where they are no escapes, because `csv.reader` drops an escape character before any other
    character, and Spark writes it only before a quote or a backslash in quotes.
    """

    def __init__(self, lines: Iterator[Line], dialect: Dialect) -> None:
        self._lines, self._again = lines, list[Line]()
        self._has_escape = dialect.escape == "\\"
        self.record: list[Line] = []
        self.is_reread = False
        """Whether the current record begins with a line that was part of a malformed one."""
        self._size = 0

    def __iter__(self) -> "_LineFeed":
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines)
        self.record.append(line)
        if isinstance(line, LongLine):
            raise csv.Error(LINE_TOO_LONG)
        self._size += len(line)
        if self._size > MAX_LINE_CHARACTERS and len(self.record) > 1:
            raise csv.Error("a quote is not closed")
        if self._has_escape and "\\" in line:
            if len(self.record) == 1 and '"' not in line:
                return line.replace("\\", "\\\\")
            return _BACKSLASHES.sub(lambda match: match[0] if match[1] else "\\\\", line)
        return line

    def start_record(self) -> None:
        """Forget the lines of the record before."""
        self.record, self._size, self.is_reread = [], 0, bool(self._again)

    def reread_all_but_first(self) -> None:
        """Read the lines of the current record again, except for the first."""
        self._again.extend(reversed(self.record[1:]))


_BACKSLASHES = re.compile(r'\\(["\\])?')


def _quoted_records(lines: Iterator[Line], dialect: Dialect) -> Iterator[Record]:
    feed = _LineFeed(lines, dialect)
    escapes = {"doublequote": False, "escapechar": "\\"} if dialect.escape == "\\" else {"doublequote": True}
    spaces = dialect.has_spaces
    reader = csv.reader(feed, delimiter=dialect.delimiter, skipinitialspace=spaces, strict=True, **escapes)
    delimiter = re.escape(dialect.delimiter)
    # Another row in a cell: a URL between a delimiter and the end of a line, or the reverse, or two delimiters.
    url = rf'"?https?://[^\s{delimiter}]*"?'
    other_row = re.compile(rf"{delimiter}{url}(?=[\r\n{delimiter}])|(?:^|[\r\n]){url}{delimiter}", re.I)
    only_urls = re.compile(r"https?://[^\r\n]*[\r\n]+\s*https?://", re.I)  # a row that has no other cell
    while True:
        feed.start_record()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield _malformed(feed, dialect)
            continue
        if len(feed.record) > 1 and any(
            "://" in cell and (other_row.search(cell) or only_urls.match(cell))
            for cell in cells
            if "\n" in cell or "\r" in cell
        ):
            yield _malformed(feed, dialect)
        elif feed.is_reread and len(feed.record) == 1 and str(feed.record[0]).count('"') % 2:
            yield _malformed(feed, dialect)  # the line with the quote that seemed to end the cell, or the end of a text
        elif len(cells) == 1 and not cells[0].strip():
            yield []
        else:
            yield cells


def _malformed(feed: _LineFeed, dialect: Dialect) -> MalformedRecord:
    first = feed.record[0]
    feed.reread_all_but_first()
    if isinstance(first, LongLine):
        return MalformedRecord(LINE_TOO_LONG, clip(first.start))
    if dialect.escape == '"' and '\\"' in first:
        return MalformedRecord("not CSV: a backslash before a quote (see `escape`)", clip(first))
    return MalformedRecord("not CSV: a stray quote (see `quoting`)" if '"' in first else "not CSV", clip(first))


def delimited_rows(
    lines: Iterator[Line],
    dialect: Dialect,
    source: str,
    names: Sequence[str] | None,
    columns: Sequence[str],
    file: str,
    reject: Reject,
) -> Iterator[Row]:
    """The rows of a delimited file.

    Args:
        lines: Its lines.
        dialect: How its cells are written.
        source: Name of the source, for unusable rows.
        names: Names of its columns; None: its first row that is not blank.
        columns: The requested columns.
        file: Name of the file.
        reject: Receives unusable rows.

    Raises:
        ListError: A column is missing, or the file has it twice.
    """
    rows = records(lines, dialect)
    if names is None:
        header = next((record for record in rows if record), None)
        if header is None:
            return
        if isinstance(header, MalformedRecord):
            raise ListError(f"{file}: its first row is no header: {header.reason}: {clip(header.content, 100)!r}")
        is_bare = header[0].strip().startswith(("http://", "https://"))
        hint = BARE_HINT if is_bare and len(header) == 1 else NO_HEADER_HINT + NO_TEXTS_HINT
        places = positions(columns, [name.strip() for name in header], file, hint)
        width = len(header)
    else:
        places, width = positions(columns, names, file), len(names)
    for number, record in enumerate(rows, 1):
        if isinstance(record, MalformedRecord):
            reject(BadRow(source, file, number, record.reason, record.content))
        elif len(record) == width:
            cells = tuple(record[place] for place in places)
            yield number, cells, sum(map(len, cells))
        elif record and record != [""]:
            reject(BadRow(source, file, number, "wrong number of columns", clip(" | ".join(record))))
