"""Lists of image URLs, in any format that a source may have, as one stream of Arrow batches.

    file bytes → (decompressed) → rows (number, url, text) → batches of `SCHEMA`

Rows are parsed one by one: a malformed row costs itself and no neighbour, and memory does not grow with the list.
A TSV has no quoting (CC3M and CC12M are published so); a CSV has the standard one, line breaks within quotes included.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.identity import uid_of
from lotlip_data.manifests.manifest import Source

SCHEMA = pa.schema([("uid", pa.string()), ("url", pa.string()), ("text", pa.string())])
BATCH_ROWS = 8192
MAX_LINE = 1 << 20
"""Characters of one line; what is longer is no row of a list."""

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_SURROGATES = re.compile("[\ud800-\udfff]")


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
_Row = tuple[int, Any, Any]
"""Number, URL and text as the file has them."""


def files_of(source: Source) -> list[str]:
    """The source's files, patterns expanded and sorted. Raises ListError where a pattern or a name matches nothing."""
    return list(chain.from_iterable(_matches(file) for file in source.files))


def size_of(file: str) -> int | None:
    """Bytes of the file, or None where its storage does not tell."""
    fs, path = fsspec.core.url_to_fs(file)
    size: int | None = fs.size(path)
    return size


def read(source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The rows of all of the source's files, in order, as batches of `SCHEMA` with at most `BATCH_ROWS` rows.

    A URL is stripped, its uid is that of `manifests.identity`; a missing text is "". Rows that cannot be used go to
    `reject`.
    Raises ListError for a file that is missing, damaged or lacks one of the two columns.
    """
    for file in files_of(source):
        with _explaining(file):
            yield from _batches(_rows(source, file, reject), source, file, reject)


def _matches(file: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(file)
    if "*" not in path:
        if not fs.exists(path):
            raise ListError(f"{file}: there is no such file")
        if fs.isdir(path):
            raise ListError(f"{file}: is a folder; name the files in it, with `*` for many")
        return [file]
    literal = re.sub(r"([\[?])", r"[\1]", path)  # only `*` is a pattern: folders may have brackets in their names
    found = sorted(name for name in fs.glob(literal) if not fs.isdir(name))
    if not found:
        raise ListError(f"{file}: no file matches")
    return [fs.unstrip_protocol(name) if "://" in file else name for name in found]


@contextmanager
def _explaining(file: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ListError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error


def _rows(source: Source, file: str, reject: Reject) -> Iterator[_Row]:
    form = source.format_of(file)
    fs, path = fsspec.core.url_to_fs(file)
    with fs.open(path, "rb") as stream:
        if form == "parquet":
            yield from _parquet_rows(stream, source, file)
            return
        lines = _lines(_text(stream, file), source, file, reject)
        if form == "jsonl":
            yield from _json_rows(lines, source, file, reject)
        else:
            cells = _csv_cells(lines) if form == "csv" else (line.rstrip("\r\n").split("\t") for line in lines)
            yield from _delimited_rows(cells, source, file, reject)


def _text(stream: IO[bytes], file: str) -> io.TextIOWrapper:
    """UTF-8 text without its byte order mark; bytes that are no UTF-8 become surrogates, which `_clean` finds."""
    compression = next((name for end, name in _COMPRESSIONS.items() if file.lower().endswith(end)), None)
    plain: Any = pa.CompressedInputStream(stream, compression) if compression else stream
    buffered = io.BufferedReader(plain, 1 << 20)
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
    rows: Iterator[list[str] | None] | Iterator[list[str]], source: Source, file: str, reject: Reject
) -> Iterator[_Row]:
    names = source.columns or next(rows, None)
    if not names:
        return
    names = [name.strip() for name in names]
    hint = "" if source.columns else ". If its first row is no header, name the columns in `columns`"
    url, text = (_position(column, names, file, hint) for column in (source.url, source.text))
    for number, row in enumerate(rows, 1):
        if row is None:
            reject(BadRow(source.name, file, number, "not CSV", ""))
        elif len(row) == len(names):
            yield number, row[url], row[text]
        elif row and row != [""]:
            reject(BadRow(source.name, file, number, "wrong number of columns", _clip(" | ".join(row))))


def _json_rows(lines: Iterator[str], source: Source, file: str, reject: Reject) -> Iterator[_Row]:
    """Rows of JSON lines. A column that none of the first `BATCH_ROWS` objects has is missing from the file."""
    seen: dict[str, None] = {}
    pending: list[_Row] | None = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        content = _json_object(line)
        if content is None:
            reject(BadRow(source.name, file, number, "not a JSON object", _clip(line)))
            continue
        row = number, content.get(source.url), content.get(source.text)
        if pending is None:
            yield row
            continue
        seen.update(dict.fromkeys(content))
        pending.append(row)
        if len(pending) == BATCH_ROWS:
            _need_both(source, list(seen), file)
            yield from pending
            pending = None
    if pending:
        _need_both(source, list(seen), file)
        yield from pending


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _parquet_rows(stream: IO[bytes], source: Source, file: str) -> Iterator[_Row]:
    content = pq.ParquetFile(stream)
    _need_both(source, content.schema_arrow.names, file)
    number = 0
    for batch in content.iter_batches(BATCH_ROWS, columns=[source.url, source.text]):
        pairs = zip(batch.column(source.url).to_pylist(), batch.column(source.text).to_pylist(), strict=True)
        for number, (url, text) in enumerate(pairs, number + 1):  # noqa: B020 — the count goes on from batch to batch
            yield number, url, text


def _need_both(source: Source, names: Sequence[str], file: str) -> None:
    for column in (source.url, source.text):
        _position(column, names, file)


def _position(column: str, names: Sequence[str], file: str, hint: str = "") -> int:
    if column not in names:
        shown = ", ".join(repr(_clip(name, 60)) for name in names[:40])
        raise ListError(f"{file}: has no column {column!r}; its columns are {shown}{hint}")
    return names.index(column)


def _batches(rows: Iterator[_Row], source: Source, file: str, reject: Reject) -> Iterator[pa.RecordBatch]:
    ready: list[tuple[str, str, str]] = []
    for number, raw_url, raw_text in rows:
        url, text = _clean(raw_url) or "", _clean(raw_text) or ""
        try:
            ready.append((_uid(url), url, text))
        except ValueError as error:
            reject(BadRow(source.name, file, number, str(error), _clip(url or text)))
        if len(ready) == BATCH_ROWS:
            yield pa.record_batch(list(zip(*ready, strict=True)), schema=SCHEMA)
            ready = []
    if ready:
        yield pa.record_batch(list(zip(*ready, strict=True)), schema=SCHEMA)


def _uid(url: str) -> str:
    """As `uid_of`, with a ValueError that is one of few reasons and never quotes the URL."""
    if not url:
        raise ValueError("no URL")
    if "\ufffd" in url:
        raise ValueError("URL not in UTF-8")
    try:
        return uid_of(url)
    except ValueError as error:
        known = ("not an http or https URL", "the URL names no host")
        raise ValueError(str(error) if str(error) in known else "malformed URL") from None


def _clean(value: Any) -> str | None:
    """A cell as stripped text that UTF-8 can hold; None where the cell is empty or holds no single value."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    value = value.strip()
    return value if value.isascii() else _SURROGATES.sub("\ufffd", value)


def _clip(text: str, length: int = 1000) -> str:
    return _SURROGATES.sub("\ufffd", text[:length])
