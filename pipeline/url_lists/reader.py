"""Reads URL lists of every supported format as a stream of Arrow batches.

    file bytes → (decompressed) → raw rows → filtered rows → uid, url, texts, hashes

Rows are parsed one by one: a malformed row does not affect its neighbours, and memory does not grow with the list or
with the length of its cells. The callback `reject` receives each unusable row; rows that the source's filter excludes
are counted per rule.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests import storage
from lotlip_data.manifests.settings.source import HashName, Source
from lotlip_data.manifests.sources.column_names import FIND
from lotlip_data.manifests.sources.row_filter import FilterError, RowFilter
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.url_lists.cells import clean, decoder, kind_of, texts_of, to_list
from lotlip_data.pipeline.url_lists.delimited import Dialect, delimited_rows, records
from lotlip_data.pipeline.url_lists.dialects import detect_dialect, separator_line
from lotlip_data.pipeline.url_lists.files import check_parquet, errors_name, files_of, open_text
from lotlip_data.pipeline.url_lists.headers import with_found_columns
from lotlip_data.pipeline.url_lists.json_rows import check_beginning, json_rows
from lotlip_data.pipeline.url_lists.parquet_rows import parquet_chunks
from lotlip_data.pipeline.url_lists.rows import BadRow, Chunk, Columns, ListError, Reject, Remark, chunked, clip
from lotlip_data.pipeline.url_lists.text_lines import check_bare_urls, check_encoding, sample_lines, text_lines


def _no_remark(sentence: str) -> None:
    """Ignore a remark."""


def read_chunks(
    source: Source, file: str, columns: Columns, reject: Reject, remark: Remark = _no_remark
) -> Iterator[Chunk]:
    """The rows of one of the source's files, in order, in chunks of at most `rows.BATCH_ROWS` rows.

    Args:
        source: The source that the file belongs to.
        file: Path or URL.
        columns: The columns to read.
        reject: Receives rows that cannot be parsed.
        remark: Receives a sentence about each deviation from the format that is read as it is meant.

    Raises:
        ListError: The file is missing or damaged, or lacks a column, or a column has another type.
    """
    form = source.format_of(file)
    with errors_name(file), storage.open_read(file) as stream:
        if form == "parquet":
            check_parquet(stream, file)
            yield from parquet_chunks(stream, source.name, columns, file, reject, remark)
            return
        sample, content = open_text(stream, file, remark)
        check_encoding(sample, file)
        beginning, lines = sample_lines(sample), text_lines(content, sample, file)
        if form == "jsonl":
            check_beginning(beginning, file)
            rows = json_rows(lines, source.name, columns, file, reject)
        else:
            names = source.columns
            if form == "txt":
                check_bare_urls(beginning, file)
                names, dialect = (source.url_column,), Dialect("\n", quoting=False)
            else:
                dialect = detect_dialect(source, form, beginning, columns.names, file, remark)
                if separator_line(beginning):
                    next(lines, None)
            rows = delimited_rows(lines, dialect, source.name, names, columns.names, file, reject)
        yield from chunked(rows, columns.names)


def count_rows(source: Source, file: str, text: bytes) -> int:
    """The number of rows, a header included, in the decompressed beginning of a file that is not Parquet."""
    form = source.format_of(file)
    lines = sample_lines(text)
    source = with_found_columns(source, file)
    if form not in ("csv", "tsv"):
        return sum(not line.isspace() for line in lines)
    dialect = detect_dialect(source, form, lines, source.needed, file, _no_remark)
    return sum(1 for record in records(iter(lines), dialect) if record)


SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("texts", pa.list_(pa.string())),
        ("expected_sha256", pa.string()),
        ("expected_md5", pa.string()),
    ]
)
HASH_DIGITS: dict[HashName, int] = {"sha256": 64, "md5": 32}

Filtered = Callable[[str, int], None]
"""Receives a reason and the number of rows that it excluded."""
Defects = Callable[[str, int], None]
"""Receives a defect of texts, such as `cells.GARBLED`, and the number of usable rows that have it."""


def _uncounted(reason: str, rows: int) -> None:
    """Ignore a count."""


def read_source(
    source: Source,
    reject: Reject,
    filtered: Filtered = _uncounted,
    defects: Defects = _uncounted,
    remark: Remark = _no_remark,
) -> Iterator[pa.RecordBatch]:
    """The rows of all files of the source, in order, as batches of `SCHEMA`.

    URLs are stripped; the uid is that of `manifests.sources.sample_id`. A row has at least one text; a missing one is
    "", and null in a file that has no column of texts where others of the source can have one. Hashes are in lower
    case, null if the list has none. Undecodable parts of a text are U+FFFD.

    Args:
        source: The source.
        reject: Receives unusable rows.
        filtered: Receives the numbers of rows that the source's filter excludes.
        defects: Receives the numbers of rows whose text is not in UTF-8, or no text at all.
        remark: Receives a sentence about each deviation from the format that is read as it is meant.

    Raises:
        ListError: A file is missing or damaged, or lacks a column.
    """
    for file in files_of(source):
        for batch in read_file(source, file, reject, filtered, defects, remark):
            if batch.num_rows:
                yield batch


def read_file(
    source: Source, file: str, reject: Reject, filtered: Filtered, defects: Defects, remark: Remark
) -> Iterator[pa.RecordBatch]:
    """As `read_source`, for one file. Batches that the filter empties are yielded too, without rows."""
    is_found, source = source.text == FIND, with_found_columns(source, file, remark)
    keep = None if source.filter is None else RowFilter(source.filter)
    has_texts = source.text_column is not None and source.format_of(file) != "txt"
    columns = Columns(
        values=(source.url_column, *source.hash),
        texts=(source.text_column,) if source.text_column is not None and has_texts else (),
        others=() if keep is None else tuple(keep.columns),
    )
    for chunk in read_chunks(source, file, columns, reject, remark):
        if keep is not None:
            chunk = _filter(chunk, keep, file, source, filtered)
        no_text = None if is_found and not has_texts else ""
        yield _batch(chunk, source, has_texts, no_text, file, reject, defects)


def blank_rows(batch: pa.RecordBatch) -> int:
    """The number of rows of a batch of `SCHEMA` that have no text."""
    texts = batch["texts"]
    single = pc.equal(pc.list_value_length(texts), 1)
    return int(pc.sum(pc.and_(single, pc.equal(pc.list_element(texts, 0), ""))).as_py() or 0)


def text_column(source: Source) -> str:
    """The column of a source's raw texts, as messages name it."""
    return "the column of the raw texts" if source.text == FIND else f"the column {source.text_column!r}"


def all_blank(source: Source) -> str:
    """A sentence about a source whose texts are all blank."""
    if source.text == FIND:
        return (
            "no column's name says that it holds the raw texts, or all of these are blank: name the column in `text`, "
            "or set `text: null` if the list has no raw texts"
        )
    return (
        f"all texts are blank: name another column than {' and '.join(map(repr, source.text_columns))} in `text`, or "
        "set `text: null` if there are none"
    )


def _filter(chunk: Chunk, keep: RowFilter, file: str, source: Source, filtered: Filtered) -> Chunk:
    """The rows for which every rule is true."""
    kept = kept_rows(chunk.columns, len(chunk.rows), keep, f"{file}: the `filter` of source {source.name}", filtered)
    positions = np.flatnonzero(kept)
    columns = {
        name: values.take(pa.array(positions)) if isinstance(values, pa.Array) else [values[row] for row in positions]
        for name, values in chunk.columns.items()
    }
    return Chunk([chunk.rows[row] for row in positions], columns)


def kept_rows(
    columns: Mapping[str, list[Any] | pa.Array], count: int, keep: RowFilter, where: str, filtered: Filtered
) -> np.ndarray:
    """The rows for which every rule of a filter is true. An excluded row counts for the first rule that it fails.

    Args:
        columns: The columns of the rows that the filter names.
        count: The number of rows.
        keep: The filter.
        where: The file and the filter, for error messages.
        filtered: Receives the numbers of excluded rows.

    Returns:
        One bool per row.

    Raises:
        ListError: The filter does not suit the columns.
    """
    try:
        rules = keep.evaluate({name: _typed(columns[name]) for name in keep.columns})
    except FilterError as error:
        raise ListError(f"{where}: {error}") from None
    kept = np.ones(count, bool)
    for rule, holds in rules:
        unknown = holds.is_null().to_numpy(zero_copy_only=False)
        fits = pc.fill_null(holds, False).to_numpy(zero_copy_only=False)
        for reason, rows in ((f"fails {rule}", ~fits & ~unknown), (f"unknown whether {rule}", unknown)):
            if excluded := int(np.count_nonzero(rows & kept)):
                filtered(reason, excluded)
        kept &= fits
    return kept


def _typed(values: list[Any] | pa.Array) -> pa.Array:
    """A column for a filter: Parquet's own type; numbers or booleans if all values are such; otherwise text."""
    if isinstance(values, pa.Array):
        return _typed_array(values)
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.nulls(len(values))
    if kinds == {int} and all(value is None or -(2**63) <= value < 2**63 for value in values):
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([_float(value) for value in values], pa.float64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    return pa.array([str(value) if isinstance(value, bool) else clean(value) or None for value in values], pa.string())


def _typed_array(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_floating(kind):  # a missing number is NaN in the files of some writers
        return pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(check(kind) for check in (*texts, pa.types.is_fixed_size_binary)):
        return values
    try:  # some writers store texts as bytes, and some declare bytes that are not UTF-8 as texts
        return values.cast(pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.array([clean(value) for value in to_list(values)], pa.large_string())


def _float(value: int | float | None) -> float | None:
    try:
        return None if value is None or value != value else float(value)
    except OverflowError:  # numbers in JSON are unbounded
        return None


def _batch(
    chunk: Chunk,
    source: Source,
    has_texts: bool,
    no_text: str | None,
    file: str,
    reject: Reject,
    defects: Defects,
) -> pa.RecordBatch:
    urls = to_list(chunk.columns[source.url_column])
    column = source.text_column if has_texts else None
    texts = [None] * len(urls) if column is None else to_list(chunk.columns[column])
    hashes = {kind: to_list(chunk.columns[column]) for column, kind in source.hash.items()}
    decode = decoder(source.decode)
    rows: list[tuple[Any, ...]] = []
    counts: Counter[str] = Counter()
    for index, number in enumerate(chunk.rows):
        url = clean(urls[index]) or ""
        try:
            if not url and (kind := kind_of(urls[index])) is not None:
                raise ValueError(f"the URL is {kind}")
            uid = uid_of_listed_url(url)
            expected = [_digest(hashes[kind][index], kind) if kind in hashes else None for kind in HASH_DIGITS]
            row_texts, defect = texts_of(texts[index], decode)
            rows.append((uid, url, row_texts or [no_text], *expected))
            if defect is not None:
                counts[defect] += 1
        except ValueError as error:
            reject(BadRow(source.name, clip(file), number, str(error), clip(url or clean(texts[index]) or "")))
    for defect, count in counts.items():
        defects(defect, count)
    columns: list[Any] = list(zip(*rows, strict=True)) or [[] for _ in SCHEMA]
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA
    )


def _digest(value: Any, kind: HashName) -> str | None:
    """The hash in lower-case hexadecimal digits; None if there is none. Raises ValueError if it is malformed."""
    if isinstance(value, bytes) and len(value) == HASH_DIGITS[kind] // 2:
        return value.hex()
    digits = (clean(value) or "").lower()
    if kind_of(value) is not None:
        raise ValueError(f"malformed {kind}")
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
