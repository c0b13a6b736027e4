"""Reads URL lists of every supported format as a stream of Arrow batches.

    file bytes → (decompressed) → raw rows → filtered rows → uid, url, text, hashes

Rows are parsed one by one: a malformed row does not affect its neighbours, and memory does not grow with the list.
A TSV has no quoting (CC3M and CC12M are published that way). A CSV has standard quoting, with line breaks in quotes.
The callback `reject` receives each unusable row; rows that the source's filter excludes are counted per rule.
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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.row_filter import FilterError, RowFilter
from lotlip_data.manifests.sample_id import uid_from_url
from lotlip_data.manifests.settings.source import HashName, Source
from lotlip_data.manifests.storage_retry import StorageError

BATCH_ROWS = 8192
MAX_LINE_CHARACTERS = 1 << 20
"""A longer line is rejected."""

GARBLED = (
    "not in UTF-8, so their unreadable bytes are lost (\ufffd); convert the files, "
    "with `iconv -f latin1 -t utf-8 OLD > NEW` if they are in Latin-1"
)
"""Completes the sentence "N texts are …"."""

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_EXPANSION = 4  # bytes of text per byte of Parquet, gzip or zstd
_UNKNOWN_SIZE_BYTES = 1 << 30
_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_SURROGATES = re.compile("[\ud800-\udfff]")
_UNDECODABLE = re.compile("[\udc80-\udcff]")  # what `surrogateescape` turns undecodable bytes into


class ListError(UserError):
    """A list file cannot be read. The message names the file and the fix."""


@dataclass(frozen=True)
class BadRow:
    """An unusable row. `row` counts from 1, without the header. `content` may be shortened."""

    source: str
    file: str
    row: int
    reason: str
    content: str


Reject = Callable[[BadRow], None]


@dataclass(frozen=True)
class Chunk:
    """Rows of a file: their numbers, and the requested columns with the file's own values."""

    rows: Sequence[int]
    columns: dict[str, list[Any] | pa.Array]


_Row = tuple[int, tuple[Any, ...]]
"""Row number and the values of the requested columns."""


def files_of(source: Source) -> list[str]:
    """The source's files, with patterns expanded and sorted. Raises ListError if a name or pattern matches nothing."""
    return list(chain.from_iterable(_matches(file) for file in source.files))


def uncompressed_bytes(source: Source) -> int:
    """An estimate of the uncompressed size of the source's files, in bytes. Raises ListError as `files_of` does."""
    total = 0
    for file in files_of(source):
        size = storage.size(file)
        packed = is_compressed(file) or source.format_of(file) == "parquet"
        total += _UNKNOWN_SIZE_BYTES if size is None else size * (_EXPANSION if packed else 1)
    return total


def stamp_of(source: Source) -> str | None:
    """A digest of the names, sizes and times of the source's files, to notice changes.

    Returns None if a file is missing or out of reach.
    """
    digest = hashlib.sha256()
    try:
        for stamps in map_ordered(storage.stamps_matching, source.files):
            if not stamps:
                return None
            digest.update(json.dumps(stamps).encode())
    except (OSError, StorageError):
        return None
    return digest.hexdigest()


def is_compressed(file: str) -> bool:
    """Whether the file's name says that it is compressed."""
    return file.lower().endswith(tuple(_COMPRESSIONS))


def read_chunks(source: Source, file: str, columns: Sequence[str], reject: Reject) -> Iterator[Chunk]:
    """The rows of one of the source's files, in order, in chunks of at most `BATCH_ROWS` rows.

    Args:
        source: The source that the file belongs to.
        file: Path or URL.
        columns: Names of the columns to read.
        reject: Receives rows that cannot be parsed.

    Raises:
        ListError: The file is missing or damaged, or lacks a column.
    """
    form = source.format_of(file)
    with _errors_name(file), storage.open_read(file) as stream:
        if form == "parquet":
            yield from _parquet_chunks(stream, columns, file)
            return
        lines = _lines(_text(stream, file), source, file, reject)
        if form == "jsonl":
            yield from _chunked(_json_rows(lines, source, columns, file, reject), columns)
        else:
            cells = _csv_cells(lines) if form == "csv" else (line.rstrip("\r\n").split("\t") for line in lines)
            yield from _chunked(_delimited_rows(cells, source, columns, file, reject), columns)


def decompressed(stream: IO[bytes], file: str) -> Any:
    """The stream, decompressed if the file's ending is that of a compressed file."""
    compression = next((name for end, name in _COMPRESSIONS.items() if file.lower().endswith(end)), None)
    return pa.CompressedInputStream(stream, compression) if compression else stream


def _chunked(rows: Iterator[_Row], columns: Sequence[str]) -> Iterator[Chunk]:
    while batch := list(islice(rows, BATCH_ROWS)):
        values = zip(*(cells for _, cells in batch), strict=True)
        yield Chunk([number for number, _ in batch], dict(zip(columns, map(list, values), strict=True)))


def _matches(file: str) -> list[str]:
    if "*" not in file:
        if not storage.exists(file):
            raise ListError(f"{file}: there is no such file")
        if storage.is_folder(file):
            raise ListError(f"{file}: is a folder; name the files in it, for example with `*`")
        return [file]
    files = storage.list_matching(file)
    if not files:
        raise ListError(f"{file}: no file matches")
    return files


@contextmanager
def _errors_name(file: str) -> Iterator[None]:
    """Turn read errors into ListErrors that name the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ListError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error


def _text(stream: IO[bytes], file: str) -> io.TextIOWrapper:
    """UTF-8 text without byte order mark. Undecodable bytes become surrogates, which `clean` replaces."""
    buffered = io.BufferedReader(decompressed(stream, file), 1 << 20)
    if encoding := _ENCODINGS.get(buffered.peek(2)[:2]):
        raise ListError(f"{file}: is {encoding}; convert it to UTF-8")
    return io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def _lines(text: io.TextIOWrapper, source: Source, file: str, reject: Reject) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE_CHARACTERS):
        number += 1
        if len(line) == MAX_LINE_CHARACTERS and not line.endswith("\n"):
            reject(BadRow(source.name, file, number, "line too long", line[:100]))
            while (rest := text.readline(MAX_LINE_CHARACTERS)) and not rest.endswith("\n"):
                pass
        else:
            yield line


def _csv_cells(lines: Iterator[str]) -> Iterator[list[str] | None]:
    """The cells of each row; None for a row that cannot be parsed, for example because a quote never closes."""
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
    hint = "" if source.columns else ". If its first row is not a header, name the columns in `columns`"
    positions = _positions(columns, names, file, hint)
    for number, row in enumerate(rows, 1):
        if row is None:
            reject(BadRow(source.name, file, number, "not CSV", ""))
        elif len(row) == len(names):
            yield number, tuple(row[position] for position in positions)
        elif row and row != [""]:
            reject(BadRow(source.name, file, number, "wrong number of columns", clip(" | ".join(row))))


def _json_rows(
    lines: Iterator[str], source: Source, columns: Sequence[str], file: str, reject: Reject
) -> Iterator[_Row]:
    """Rows of JSON lines. A column counts as missing if none of the first `BATCH_ROWS` objects has it."""
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
    content = pq.ParquetFile(stream, pre_buffer=False)  # pre-buffering would keep all data until the end of the file
    _positions(columns, content.schema_arrow.names, file)
    number = 1
    for group in range(content.num_row_groups):  # one by one, so that the memory of a group is freed
        for batch in content.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns)):
            yield Chunk(range(number, number + batch.num_rows), {column: batch.column(column) for column in columns})
            number += batch.num_rows


def _positions(columns: Sequence[str], names: Sequence[str], file: str, hint: str = "") -> list[int]:
    """The position of each column. Raises ListError, which lists the file's columns, if one is missing."""
    for column in columns:
        if column not in names:
            shown = ", ".join(repr(clip(name, 60)) for name in names[:40])
            raise ListError(f"{file}: has no column {column!r}; its columns are {shown}{hint}")
    return [names.index(column) for column in columns]


def clean(value: Any) -> str | None:
    """A cell as stripped text that UTF-8 can encode; None if the cell is empty or holds no single value."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    value = value.strip()
    return value if value.isascii() else _SURROGATES.sub("\ufffd", value)


def is_utf8(value: Any) -> bool:
    """Whether the bytes of a cell are valid UTF-8."""
    if isinstance(value, bytes):
        try:
            value.decode()
        except UnicodeDecodeError:
            return False
    return not (isinstance(value, str) and _UNDECODABLE.search(value))


def clip(text: str, length: int = 1000) -> str:
    """The first `length` characters, without surrogates."""
    return _SURROGATES.sub("\ufffd", text[:length])


SCHEMA = pa.schema([(name, pa.string()) for name in ("uid", "url", "text", "expected_sha256", "expected_md5")])
HASH_DIGITS: dict[HashName, int] = {"sha256": 64, "md5": 32}

Filtered = Callable[[str, int], None]
"""Receives a reason and the number of rows that it excluded."""
Garbled = Callable[[int], None]
"""Receives the number of rows whose text is not in UTF-8."""


def read_source(
    source: Source,
    reject: Reject,
    filtered: Filtered = lambda reason, count: None,
    garbled: Garbled = lambda count: None,
) -> Iterator[pa.RecordBatch]:
    """The rows of all files of the source, in order, as batches of `SCHEMA`.

    URLs are stripped; the uid is that of `manifests.sample_id`. A missing text is "". Hashes are in lower case, null if
    the list has none. Undecodable parts of a text are U+FFFD.

    Args:
        source: The source.
        reject: Receives unusable rows.
        filtered: Receives the numbers of rows that the source's filter excludes.
        garbled: Receives the numbers of rows whose text is not in UTF-8.

    Raises:
        ListError: A file is missing or damaged, or lacks a column.
    """
    for file in files_of(source):
        for batch in read_file(source, file, reject, filtered, garbled):
            if batch.num_rows:
                yield batch


def read_file(
    source: Source, file: str, reject: Reject, filtered: Filtered, garbled: Garbled
) -> Iterator[pa.RecordBatch]:
    """As `read_source`, for one file. Batches that the filter empties are yielded too, without rows."""
    keep = None if source.filter is None else RowFilter(source.filter)
    for chunk in read_chunks(source, file, source.needed, reject):
        if keep is not None:
            chunk = _filter(chunk, keep, file, source, filtered)
        yield _batch(chunk, source, file, reject, garbled)


def _filter(chunk: Chunk, keep: RowFilter, file: str, source: Source, filtered: Filtered) -> Chunk:
    """The rows for which every rule is true. An excluded row counts for the first rule that it fails."""
    try:
        rules = keep.evaluate({name: _typed(chunk.columns[name]) for name in keep.columns})
    except FilterError as error:
        raise ListError(f"{file}: the `filter` of source {source.name}: {error}") from None
    kept = np.ones(len(chunk.rows), bool)
    for rule, holds in rules:
        unknown = holds.is_null().to_numpy(zero_copy_only=False)
        fits = pc.fill_null(holds, False).to_numpy(zero_copy_only=False)
        for reason, rows in ((f"fails {rule}", ~fits & ~unknown), (f"unknown whether {rule}", unknown)):
            if count := int(np.count_nonzero(rows & kept)):
                filtered(reason, count)
        kept &= fits
    positions = np.flatnonzero(kept)
    columns = {
        name: values.take(pa.array(positions)) if isinstance(values, pa.Array) else [values[row] for row in positions]
        for name, values in chunk.columns.items()
    }
    return Chunk([chunk.rows[row] for row in positions], columns)


def _typed(values: list[Any] | pa.Array) -> pa.Array:
    """A column for a filter: Parquet's own type; numbers or booleans if all values are such; otherwise text."""
    if isinstance(values, pa.Array):
        return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {int, float}:
        return pa.array([_float(value) for value in values], pa.float64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    return pa.array([clean(value) or None for value in values], pa.string())


def _float(value: int | float | None) -> float | None:
    try:
        return value if value is None else float(value)
    except OverflowError:  # numbers in JSON are unbounded
        return None


def _batch(chunk: Chunk, source: Source, file: str, reject: Reject, garbled: Garbled) -> pa.RecordBatch:
    cells = {name: _to_list(values) for name, values in chunk.columns.items()}
    rows: list[tuple[str | None, ...]] = []
    garbled_rows = 0
    hashes = {kind: cells[column] for column, kind in source.hash.items()}
    for index, number in enumerate(chunk.rows):
        url, text = clean(cells[source.url][index]) or "", clean(cells[source.text][index]) or ""
        try:
            uid = uid_of_listed_url(url)
            expected = [_digest(hashes[kind][index], kind) if kind in hashes else None for kind in HASH_DIGITS]
            rows.append((uid, url, text, *expected))
            garbled_rows += "\ufffd" in text and not is_utf8(cells[source.text][index])
        except ValueError as error:
            reject(BadRow(source.name, file, number, str(error), clip(url or text)))
    garbled(garbled_rows)
    columns: list[Any] = list(zip(*rows, strict=True)) or [[] for _ in SCHEMA]
    return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=SCHEMA)


def _to_list(values: list[Any] | pa.Array) -> list[Any]:
    if not isinstance(values, pa.Array):
        return values
    try:
        listed: list[Any] = values.to_pylist()
    except UnicodeDecodeError:  # some Parquet writers declare bytes as strings without a check
        dense = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        listed = dense.cast(pa.large_binary()).to_pylist()
    return listed


def _digest(value: Any, kind: HashName) -> str | None:
    """The hash in lower-case hexadecimal digits; None if there is none. Raises ValueError if it is malformed."""
    if isinstance(value, bytes) and len(value) == HASH_DIGITS[kind] // 2:
        return value.hex()
    digits = (clean(value) or "").lower()
    if digits and (len(digits) != HASH_DIGITS[kind] or digits.strip("0123456789abcdef")):
        raise ValueError(f"malformed {kind}")
    return digits or None


def uid_of_listed_url(url: str) -> str:
    """As `uid_from_url`, but a ValueError has one of a few fixed reasons and never quotes the URL."""
    if not url:
        raise ValueError("no URL")
    if "\ufffd" in url:
        raise ValueError("URL not in UTF-8")
    try:
        return uid_from_url(url)
    except ValueError as error:
        known = ("not an http or https URL", "the URL names no host")
        raise ValueError(str(error) if str(error) in known else "malformed URL") from None
