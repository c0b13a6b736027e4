"""Lists of image URLs as one stream of Arrow batches: files → raw rows → filtered → url, text, uid, hashes.

What cannot be used is told to `reject` row by row; what the source's filter leaves out is counted by rule.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests.identity import uid_of
from lotlip_data.manifests.row_filter import FilterError, RowFilter
from lotlip_data.manifests.source import HashName, Source
from lotlip_data.pipeline.list_files import BadRow, Chunk, ListError, Reject, chunks, clean, clip, files_of, is_utf8

SCHEMA = pa.schema([(name, pa.string()) for name in ("uid", "url", "text", "expected_sha256", "expected_md5")])
HASH_DIGITS: dict[HashName, int] = {"sha256": 64, "md5": 32}

Filtered = Callable[[str, int], None]
"""Hears of a reason, and of how many rows were left out for it."""
Garbled = Callable[[int], None]
"""Hears of how many rows have a text that is not in UTF-8."""


def read(
    source: Source,
    reject: Reject,
    filtered: Filtered = lambda reason, count: None,
    garbled: Garbled = lambda count: None,
) -> Iterator[pa.RecordBatch]:
    """The rows of all of the source's files, in order, as batches of `SCHEMA`.

    A URL is stripped, its uid is that of `manifests.identity`; a missing text is ""; a hash is in small letters, null
    where the list has none. Rows that cannot be used go to `reject`, rows that the filter leaves out are counted, and
    so are rows of which the text is not in UTF-8: what cannot be read of it is U+FFFD.
    Raises ListError for a file that is missing, damaged or lacks a column.
    """
    for file in files_of(source):
        for batch in read_file(source, file, reject, filtered, garbled):
            if batch.num_rows:
                yield batch


def read_file(
    source: Source, file: str, reject: Reject, filtered: Filtered, garbled: Garbled
) -> Iterator[pa.RecordBatch]:
    """As `read`, of one of the files; a batch of which nothing is left comes too, without rows."""
    keep = None if source.filter is None else RowFilter(source.filter)
    for chunk in chunks(source, file, source.needed, reject):
        if keep is not None:
            chunk = _filter(chunk, keep, file, source, filtered)
        yield _batch(chunk, source, file, reject, garbled)


def _filter(chunk: Chunk, keep: RowFilter, file: str, source: Source, filtered: Filtered) -> Chunk:
    """The rows of which every rule is true. A row that is left out counts for the first rule that it fails."""
    try:
        rules = keep.judge({name: _typed(chunk.columns[name]) for name in keep.columns})
    except FilterError as error:
        raise ListError(f"{file}: the `filter` of source {source.name}: {error}") from None
    taken = np.ones(len(chunk.rows), bool)
    for rule, holds in rules:
        unknown = holds.is_null().to_numpy(zero_copy_only=False)
        fits = pc.fill_null(holds, False).to_numpy(zero_copy_only=False)
        for reason, rows in ((f"fails {rule}", ~fits & ~unknown), (f"unknown whether {rule}", unknown)):
            if count := int(np.count_nonzero(rows & taken)):
                filtered(reason, count)
        taken &= fits
    where = np.flatnonzero(taken)
    columns = {
        name: values.take(pa.array(where)) if isinstance(values, pa.Array) else [values[row] for row in where]
        for name, values in chunk.columns.items()
    }
    return Chunk([chunk.rows[row] for row in where], columns)


def _typed(values: list[Any] | pa.Array) -> pa.Array:
    """A column for a filter: Parquet's own type; numbers or truth values where every value is one; else text."""
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
    except OverflowError:  # JSON's numbers have no bound
        return None


def _batch(chunk: Chunk, source: Source, file: str, reject: Reject, garbled: Garbled) -> pa.RecordBatch:
    cells = {name: _listed(values) for name, values in chunk.columns.items()}
    ready: list[tuple[str | None, ...]] = []
    damaged = 0
    hashes = {kind: cells[column] for column, kind in source.hash.items()}
    for index, number in enumerate(chunk.rows):
        url, text = clean(cells[source.url][index]) or "", clean(cells[source.text][index]) or ""
        try:
            uid = uid_of_listed(url)
            expected = [_digest(hashes[kind][index], kind) if kind in hashes else None for kind in HASH_DIGITS]
            ready.append((uid, url, text, *expected))
            damaged += "\ufffd" in text and not is_utf8(cells[source.text][index])
        except ValueError as error:
            reject(BadRow(source.name, file, number, str(error), clip(url or text)))
    garbled(damaged)
    columns: list[Any] = list(zip(*ready, strict=True)) or [[] for _ in SCHEMA]
    return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=SCHEMA)


def _listed(values: list[Any] | pa.Array) -> list[Any]:
    if not isinstance(values, pa.Array):
        return values
    try:
        listed: list[Any] = values.to_pylist()
    except UnicodeDecodeError:  # some writers of Parquet do not look at what they call a string
        plain = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        listed = plain.cast(pa.large_binary()).to_pylist()
    return listed


def _digest(value: Any, kind: HashName) -> str | None:
    """The hash in small hexadecimal letters, None where there is none. Raises ValueError where it is no such hash."""
    if isinstance(value, bytes) and len(value) == HASH_DIGITS[kind] // 2:
        return value.hex()
    digits = (clean(value) or "").lower()
    if digits and (len(digits) != HASH_DIGITS[kind] or digits.strip("0123456789abcdef")):
        raise ValueError(f"malformed {kind}")
    return digits or None


def uid_of_listed(url: str) -> str:
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
