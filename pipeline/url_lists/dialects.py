"""Detects how the cells of a CSV or TSV are written, by the first lines of the file.

What the manifest says is not detected. Where the file says nothing, the format decides: a CSV has commas and quotes, a
TSV has tabs and no quotes (CC3M and CC12M are published that way).
"""

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import islice

from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.url_lists.delimited import Dialect, MalformedRecord, Record, records
from lotlip_data.pipeline.url_lists.rows import Remark

_DELIMITERS = (",", "\t", ";", "|")
_SAMPLED_RECORDS = 1000
_TOLERATED_SHARE = 0.01
_OPEN_CELL = re.compile(r'"(?:[^"]|"")*+')
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')
"""The first line by which Excel names the delimiter."""


def separator_line(lines: Sequence[str]) -> str | None:
    """The delimiter in Excel's `sep=;`, if that is the first line."""
    match = _SEPARATOR_LINE.fullmatch(lines[0]) if lines else None
    return match[1] if match else None


def detect_dialect(
    source: Source, form: str, lines: Sequence[str], columns: Sequence[str], file: str, remark: Remark
) -> Dialect:
    """How the cells of a file are written.

    Args:
        source: Its settings take precedence.
        form: `csv` or `tsv`.
        lines: The first lines of the file.
        columns: The columns that the file must have.
        file: Name of the file.
        remark: Receives a sentence about each deviation from the format.
    """
    usual = "," if form == "csv" else "\t"
    delimiter = source.delimiter or separator_line(lines) or _delimiter(source.columns, usual, lines, columns)
    if source.delimiter is None and delimiter != usual:
        remark(f"{file}: its cells are separated by {delimiter!r}; set `delimiter` if they are not")
    quoting = source.quoting
    if quoting is None:
        quoting = form == "csv" or delimiter != "\t" or source.escape is not None
        if not quoting and source.columns is None and _has_quoted_header(lines, delimiter, columns):
            quoting = True
            remark(f"{file}: its cells are quoted; set `quoting: false` if the quotes are text")
        elif not quoting and _is_quoted(lines, delimiter, () if source.columns else columns):
            quoting = True
            remark(f'{file}: its cells are quoted, with "" for a quote; set `quoting: false` if the quotes are text')
    escape = source.escape or '"'
    if quoting and source.escape is None and any('\\"' in line for line in lines):
        by_escape = {mark: _malformed_share(lines, Dialect(delimiter, mark)) for mark in ('"', "\\")}
        if by_escape["\\"] < by_escape['"']:
            escape = "\\"
            remark(f"{file}: a quote in a quoted cell follows a backslash, as Spark writes it; set `escape` if not")
    has_spaces = quoting and source.columns is None and _has_spaces(lines, delimiter)
    if has_spaces:
        remark(f"{file}: a space follows each {delimiter!r}, so a quote after it begins a quoted cell")
    return Dialect(delimiter, escape, quoting, has_spaces)


def header_names(source: Source, form: str, lines: Sequence[str]) -> list[str]:
    """The columns that the first line of a CSV or TSV names; it is cut at the delimiter that gives the most columns.

    Args:
        source: Its `delimiter` takes precedence.
        form: `csv` or `tsv`.
        lines: The first lines of the file.
    """
    usual = "," if form == "csv" else "\t"
    header = next((line for line in lines[bool(separator_line(lines)) :] if line.strip()), "")
    fixed = source.delimiter or separator_line(lines)
    candidates = [fixed] if fixed else [usual, *(mark for mark in _DELIMITERS if mark != usual)]
    return max((_split(header, mark) for mark in candidates), key=len)


def _delimiter(names: Sequence[str] | None, usual: str, lines: Sequence[str], columns: Sequence[str]) -> str:
    """The first delimiter, the usual one before others, that separates the columns."""
    candidates = [usual, *(mark for mark in _DELIMITERS if mark != usual)]
    if names is None:
        header = next((line for line in lines if line.strip()), "")
        return next((mark for mark in candidates if set(columns) <= set(_split(header, mark))), usual)
    if len(names) == 1:
        return usual
    sample = [line for line in lines if line.strip()][:_SAMPLED_RECORDS]
    shares = {mark: sum(len(_split(line, mark)) == len(names) for line in sample) for mark in candidates}
    return usual if 2 * shares[usual] >= len(sample) else max(candidates, key=shares.__getitem__)


def _has_quoted_header(lines: Sequence[str], delimiter: str, columns: Sequence[str]) -> bool:
    """Whether the first line names the columns only if its quotes are removed."""
    header = next((line.rstrip("\r\n") for line in lines if line.strip()), "")
    return not set(columns) <= set(header.split(delimiter)) and set(columns) <= set(_split(header, delimiter))


def _has_spaces(lines: Sequence[str], delimiter: str) -> bool:
    """Whether the header has a space after each delimiter, and a quote follows such a space."""
    header = next((line for line in lines if line.strip()), "")
    cells = header.split(delimiter)[1:]
    return (
        bool(cells) and all(cell.startswith(" ") for cell in cells) and any(f'{delimiter} "' in line for line in lines)
    )


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _malformed_share(lines: Sequence[str], dialect: Dialect) -> float:
    """The share of rows that are malformed, or have another number of cells than the first."""
    width = None
    count = malformed = 0
    for record in islice(_nonblank(records(iter(lines), dialect)), _SAMPLED_RECORDS):
        count += 1
        if isinstance(record, MalformedRecord):
            malformed += 1
            continue
        width = len(record) if width is None else width
        malformed += len(record) != width
    return malformed / max(count, 1)


def _nonblank(rows: Iterator[Record]) -> Iterator[Record]:
    return (record for record in rows if record)


def _is_quoted(lines: Sequence[str], delimiter: str, columns: Sequence[str]) -> bool:
    """Whether quotes stand only around cells, and at least one pair of them is no part of a text.

    pandas and R put quotes around all texts, or around those that contain a quote, a delimiter or a line break.

    Args:
        lines: The first lines of the file.
        delimiter: What separates its cells.
        columns: The columns that its header must have; empty if it has no header.
    """
    sample = lines[:_SAMPLED_RECORDS]
    if not any('"' in line for line in sample):
        return False
    text = "".join(sample)
    mark = re.escape(delimiter)
    cell = re.compile(rf'(?:"((?:[^"]|"")*+)"|[^"{mark}\r\n]*+)(?:{mark}|\r?\n|\r|\Z)')
    header = next(line for line in lines if line.strip())
    needs_quotes = not set(columns) <= set(header.rstrip("\r\n").split(delimiter))
    has_plain_cells = False
    place = 0
    while place < len(text):
        match = cell.match(text, place)
        if match is None:
            if _OPEN_CELL.fullmatch(text, place):  # where the sample ends
                break
            return False
        place = match.end()
        has_plain_cells = has_plain_cells or (match[1] is None and not match[0].isspace())
        needs_quotes = needs_quotes or any(sign in (match[1] or "") for sign in ('"', delimiter, "\n", "\r"))
    if has_plain_cells and not needs_quotes:
        return False
    return _malformed_share(lines, Dialect(delimiter)) <= _TOLERATED_SHARE
