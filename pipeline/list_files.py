"""Files of lists, in any format that a source may have, as chunks of raw rows.

    file bytes → (decompressed) → rows → chunks of the columns that are asked for

Rows are parsed one by one: a malformed row costs itself and no neighbour, and memory does not grow with the list.
A TSV has no quoting (CC3M and CC12M are published so); a CSV has the standard one, line breaks within quotes included.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.patience import StorageError
from lotlip_data.manifests.source import Source
from lotlip_data.pipeline.ahead import in_order

BATCH_ROWS = 8192
MAX_LINE = 1 << 20
"""Characters of one line; what is longer is no row of a list."""

GARBLED = (
    "not in UTF-8, so what cannot be read of them is lost (\ufffd); convert the files, "
    "with `iconv -f latin1 -t utf-8 OLD > NEW` if they are in Latin-1"
)
"""What is said of texts."""

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_EXPANSION = 4  # bytes of text in a byte of Parquet, gzip or zstd
_UNKNOWN_SIZE = 1 << 30
_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_SURROGATES = re.compile("[\ud800-\udfff]")
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of bytes


class ListError(UserError):
    """A list that cannot be read at all; the message names the file and the fix."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used. `row` counts from 1, the header not included; `content` may be clipped."""

    source: str
    file: str
    row: int
    reason: str
    content: str


Reject = Callable[[BadRow], None]


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file: their numbers, and a column for each name that was asked for, as the file has it."""

    rows: Sequence[int]
    columns: dict[str, list[Any] | pa.Array]


_Row = tuple[int, tuple[Any, ...]]
"""Number, and the values of the columns that are asked for."""


def files_of(source: Source) -> list[str]:
    """The source's files, patterns expanded and sorted. Raises ListError where a pattern or a name matches nothing."""
    return list(chain.from_iterable(_matches(file) for file in source.files))


def plain_bytes(source: Source) -> int:
    """About how many bytes of text the source's files hold. Raises ListError as `files_of`."""
    total = 0
    for file in files_of(source):
        size = storage.size(file)
        packed = is_compressed(file) or source.format_of(file) == "parquet"
        total += _UNKNOWN_SIZE if size is None else size * (_EXPANSION if packed else 1)
    return total


def stamp_of(source: Source) -> str | None:
    """A digest of the names of the source's files and of the storage's stamp of each, which changes whenever they do.

    None where a file is gone or out of reach.
    """
    digest = hashlib.sha256()
    try:
        for found in in_order(storage.stamps_matching, source.files):
            if not found:
                return None
            digest.update(json.dumps(found).encode())
    except (OSError, StorageError):
        return None
    return digest.hexdigest()


def is_compressed(file: str) -> bool:
    return file.lower().endswith(tuple(_COMPRESSIONS))


def chunks(source: Source, file: str, columns: Sequence[str], reject: Reject) -> Iterator[Chunk]:
    """The rows of one of the source's files, in order, in chunks of at most `BATCH_ROWS`.

    Rows that cannot be parsed go to `reject`. Raises ListError for a file that is missing, damaged or lacks a column.
    """
    form = source.format_of(file)
    with _explaining(file), storage.open_read(file) as stream:
        if form == "parquet":
            yield from _parquet_chunks(stream, columns, file)
            return
        lines = _lines(_text(stream, file), source, file, reject)
        if form == "jsonl":
            yield from _chunked(_json_rows(lines, source, columns, file, reject), columns)
        else:
            cells = _csv_cells(lines) if form == "csv" else (line.rstrip("\r\n").split("\t") for line in lines)
            yield from _chunked(_delimited_rows(cells, source, columns, file, reject), columns)


def plain(stream: IO[bytes], file: str) -> Any:
    """The stream's content, decompressed where the file's ending says that it is compressed."""
    compression = next((name for end, name in _COMPRESSIONS.items() if file.lower().endswith(end)), None)
    return pa.CompressedInputStream(stream, compression) if compression else stream


def _chunked(rows: Iterator[_Row], columns: Sequence[str]) -> Iterator[Chunk]:
    while some := list(islice(rows, BATCH_ROWS)):
        values = zip(*(cells for _, cells in some), strict=True)
        yield Chunk([number for number, _ in some], dict(zip(columns, map(list, values), strict=True)))


def _matches(file: str) -> list[str]:
    if "*" not in file:
        if not storage.exists(file):
            raise ListError(f"{file}: there is no such file")
        if storage.is_folder(file):
            raise ListError(f"{file}: is a folder; name the files in it, with `*` for many")
        return [file]
    found = storage.list_matching(file)
    if not found:
        raise ListError(f"{file}: no file matches")
    return found


@contextmanager
def _explaining(file: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ListError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error


def _text(stream: IO[bytes], file: str) -> io.TextIOWrapper:
    """UTF-8 text without its byte order mark; bytes that are no UTF-8 become surrogates, which `clean` finds."""
    buffered = io.BufferedReader(plain(stream, file), 1 << 20)
    if encoding := _ENCODINGS.get(buffered.peek(2)[:2]):
        raise ListError(f"{file}: is {encoding}; convert it to UTF-8")
    return io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def _lines(text: io.TextIOWrapper, source: Source, file: str, reject: Reject) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE and not line.endswith("\n"):
            reject(BadRow(source.name, file, number, "line too long", line[:100]))
            while (rest := text.readline(MAX_LINE)) and not rest.endswith("\n"):
                pass
        else:
            yield line


def _csv_cells(lines: Iterator[str]) -> Iterator[list[str] | None]:
    """The cells of each row; None for a row that cannot be parsed, such as one with a quote that never closes."""
    reader = csv.reader(lines)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield None


def _delimited_rows(
    rows: Iterator[list[str] | None] | Iterator[list[str]],
    source: Source,
    columns: Sequence[str],
    file: str,
    reject: Reject,
) -> Iterator[_Row]:
    names = source.columns or next(rows, None)
    if not names:
        return
    names = [name.strip() for name in names]
    hint = "" if source.columns else ". If its first row is no header, name the columns in `columns`"
    wanted = _positions(columns, names, file, hint)
    for number, row in enumerate(rows, 1):
        if row is None:
            reject(BadRow(source.name, file, number, "not CSV", ""))
        elif len(row) == len(names):
            yield number, tuple(row[position] for position in wanted)
        elif row and row != [""]:
            reject(BadRow(source.name, file, number, "wrong number of columns", clip(" | ".join(row))))


def _json_rows(
    lines: Iterator[str], source: Source, columns: Sequence[str], file: str, reject: Reject
) -> Iterator[_Row]:
    """Rows of JSON lines. A column that none of the first `BATCH_ROWS` objects has is missing from the file."""
    seen: dict[str, None] = {}
    pending: list[_Row] | None = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        content = _json_object(line)
        if content is None:
            reject(BadRow(source.name, file, number, "not a JSON object", clip(line)))
            continue
        row = number, tuple(content.get(column) for column in columns)
        if pending is None:
            yield row
            continue
        seen.update(dict.fromkeys(content))
        pending.append(row)
        if len(pending) == BATCH_ROWS:
            _positions(columns, list(seen), file)
            yield from pending
            pending = None
    if pending:
        _positions(columns, list(seen), file)
        yield from pending


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _parquet_chunks(stream: IO[bytes], columns: Sequence[str], file: str) -> Iterator[Chunk]:
    content = pq.ParquetFile(stream, pre_buffer=False)  # which would keep all that is read until the file's end
    _positions(columns, content.schema_arrow.names, file)
    number = 1
    for group in range(content.num_row_groups):  # one by one: what was read of a group goes with it
        for batch in content.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns)):
            yield Chunk(range(number, number + batch.num_rows), {column: batch.column(column) for column in columns})
            number += batch.num_rows


def _positions(columns: Sequence[str], names: Sequence[str], file: str, hint: str = "") -> list[int]:
    """Where each column is. Raises ListError, listing those that there are, for one that is missing."""
    for column in columns:
        if column not in names:
            shown = ", ".join(repr(clip(name, 60)) for name in names[:40])
            raise ListError(f"{file}: has no column {column!r}; its columns are {shown}{hint}")
    return [names.index(column) for column in columns]


def clean(value: Any) -> str | None:
    """A cell as stripped text that UTF-8 can hold; None where the cell is empty or holds no single value."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    value = value.strip()
    return value if value.isascii() else _SURROGATES.sub("\ufffd", value)


def is_utf8(value: Any) -> bool:
    """Whether the bytes that a cell was read from are text in UTF-8."""
    if isinstance(value, bytes):
        try:
            value.decode()
        except UnicodeDecodeError:
            return False
    return not (isinstance(value, str) and _NO_UTF8.search(value))


def clip(text: str, length: int = 1000) -> str:
    return _SURROGATES.sub("\ufffd", text[:length])
