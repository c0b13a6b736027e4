"""Reads Parquet files with bounded memory, whatever their cells expand to.

A row group whose pages are too large to be decompressed is left out, row by row with a reason. Of others, a batch has
as few rows as its largest cells demand, and a row with a cell above the limit is unusable.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.pipeline.url_lists.cells import is_text_type, is_value_type, plain, sizes
from lotlip_data.pipeline.url_lists.parquet_pages import (
    ColumnChunk,
    ParquetDamageError,
    column_chunks,
    longest_dictionary_value,
    pages,
)
from lotlip_data.pipeline.url_lists.rows import (
    BATCH_ROWS,
    CHUNK_BYTES,
    MAX_LINE_CHARACTERS,
    NO_TEXTS_HINT,
    BadRow,
    Chunk,
    Columns,
    ListError,
    Reject,
    Remark,
    positions,
)

MAX_PAGE_BYTES = 128 << 20
"""Largest page that is decompressed, and largest size of a batch."""
MAX_ROW_VALUES = 1 << 26
"""Number of elements that the lists of a row group can have more than it has rows."""
MAX_SHORT_PAGE_BYTES, SHORT_VALUE_BYTES = 1 << 30, 1 << 12
"""Largest page whose values have at most so many bytes on average: fastparquet writes row groups in one page."""
TOO_LARGE = "its row group cannot be decompressed in bounded memory"
_LONG_VALUE_BYTES = 1 << 16
_READ_BYTES = 1 << 20


def parquet_chunks(
    stream: IO[bytes], source: str, columns: Columns, file: str, reject: Reject, remark: Remark
) -> Iterator[Chunk]:
    """The rows of a Parquet file.

    Args:
        stream: The file, seekable.
        source: Name of the source, for unusable rows.
        columns: The requested columns.
        file: Name of the file.
        reject: Receives unusable rows.
        remark: Receives a sentence about each row group that is left out.

    Raises:
        ListError: A column is missing, or has a type that is no text.
    """
    # Pre-buffering would keep all data until the end of the file, and without a buffer each column chunk is held whole.
    # A remote file would be read several times in pieces that alternate between columns.
    buffer_size = _READ_BYTES if storage.is_local(file) else 0
    content = pq.ParquetFile(stream, pre_buffer=False, buffer_size=buffer_size)
    chunks_of_groups = column_chunks(stream)
    names = columns.names
    _check_types(content.schema_arrow, columns, file)
    widths = {name: fixed_bytes(content.schema_arrow.field(name).type) for name in names}
    number = 1
    for group in range(content.num_row_groups):  # one by one, so that the memory of a group is freed
        rows = content.metadata.row_group(group).num_rows
        try:
            batch_rows = rows_in_memory(stream, chunks_of_groups[group], rows, widths)
        except RowGroupTooLargeError as error:
            remark(f"{file}: row group {group} is left out: {error}")
            for row in range(number, number + rows):
                reject(BadRow(source, file, row, TOO_LARGE, f"row group {group}"))
            number += rows
            continue
        for batch in content.iter_batches(batch_rows, row_groups=[group], columns=names):
            yield from _chunks(batch, number, source, names, file, reject)
            number += batch.num_rows


def _check_types(schema: pa.Schema, columns: Columns, file: str) -> None:
    positions(columns.names, schema.names, file, NO_TEXTS_HINT)
    for name in columns.names:
        kind = schema.field(name).type
        if name in columns.values and not is_value_type(kind):
            raise ListError(f"{file}: the column {name!r} is {kind}, not a text; choose another column")
        if name in columns.texts and not is_text_type(kind):
            raise ListError(f"{file}: the column {name!r} is {kind}, not a text or a list of texts; choose another")


class RowGroupTooLargeError(Exception):
    """A row group needs more memory than its rows can be worth. The message says which column and why."""


def fixed_bytes(kind: pa.DataType) -> int:
    """The largest size that a type demands of each value, even of a missing one: that of bytes of a fixed length."""
    parts = [fixed_bytes(kind.field(index).type) for index in range(kind.num_fields)]
    if pa.types.is_dictionary(kind):
        parts.append(fixed_bytes(kind.value_type))
    if isinstance(kind, pa.BaseExtensionType):
        parts.append(fixed_bytes(kind.storage_type))
    return max([kind.byte_width if pa.types.is_fixed_size_binary(kind) else 0, *parts])


def rows_in_memory(
    stream: IO[bytes],
    chunks: Sequence[ColumnChunk],
    rows: int,
    widths: Mapping[str, int],
    max_page_bytes: int | None = None,
) -> int:
    """How many rows of a row group can be in memory at once: at most `BATCH_ROWS`, of about `MAX_PAGE_BYTES`.

    Args:
        stream: The file.
        chunks: The column chunks of the row group.
        rows: Its rows.
        widths: `fixed_bytes` of each requested column.
        max_page_bytes: Largest page that is decompressed. Default: `MAX_PAGE_BYTES`.

    Raises:
        RowGroupTooLargeError: A page is too large to be decompressed.
    """
    batch_rows = BATCH_ROWS
    for chunk in chunks:
        width = max((width for name, width in widths.items() if f"{chunk.path}.".startswith(f"{name}.")), default=None)
        if not rows or width is None:
            continue
        if rows > chunk.values:
            raise ParquetDamageError(f"the column {chunk.path!r} has {chunk.values} values for {rows} rows")
        value_bytes = max(_largest_value_bytes(stream, chunk, max_page_bytes or MAX_PAGE_BYTES), width)
        extra_values = chunk.values - rows  # of lists
        if extra_values > MAX_ROW_VALUES or (
            value_bytes > _LONG_VALUE_BYTES and extra_values * value_bytes > MAX_PAGE_BYTES
        ):
            raise RowGroupTooLargeError(f"the lists of the column {chunk.path!r} have {chunk.values:,} elements")
        batch_rows = min(batch_rows, int(MAX_PAGE_BYTES / max(value_bytes * math.ceil(chunk.values / rows), 1)))
    return max(batch_rows, 1)


def _largest_value_bytes(stream: IO[bytes], chunk: ColumnChunk, max_page_bytes: int) -> float:
    """The largest mean of the bytes per value among the pages of a column chunk.

    A value in a dictionary counts with its own length, because every row can repeat it; so can rows of a page with
    prefixes. In a chunk that fits in memory as a whole, only such values matter. Raises RowGroupTooLargeError if a page
    is too large.
    """
    if not chunk.holds_bytes:
        return 8.0
    fits = chunk.uncompressed_bytes <= MAX_PAGE_BYTES
    largest = 0.0
    for page in pages(stream, chunk):
        mean = page.uncompressed_bytes / max(page.values, 1)
        if page.uncompressed_bytes > (MAX_SHORT_PAGE_BYTES if mean <= SHORT_VALUE_BYTES else max_page_bytes):
            raise RowGroupTooLargeError(
                f"the column {chunk.path!r} has a page of {page.uncompressed_bytes >> 20:,} MiB with "
                f"{page.values:,} values; at most {max_page_bytes >> 20:,} MiB are decompressed. If its content is "
                "right, write the file again with smaller pages"
            )
        if page.is_dictionary:
            if page.uncompressed_bytes * BATCH_ROWS > MAX_PAGE_BYTES:
                largest = float(longest_dictionary_value(stream, page, chunk.codec))
        elif page.has_prefixes:
            largest = max(largest, float(page.uncompressed_bytes))
        elif not fits:
            largest = max(largest, mean)
        elif not chunk.has_prefixes:
            break
    return largest


def _chunks(
    batch: pa.RecordBatch, number: int, source: str, names: Sequence[str], file: str, reject: Reject
) -> Iterator[Chunk]:
    """A batch, whose first row is number `number`, in chunks of about `CHUNK_BYTES`, without its unusable rows."""
    by_column = {name: sizes(batch.column(name)) for name in names}
    too_long = np.zeros(batch.num_rows, bool)
    for name, cell_bytes in by_column.items():
        for row in np.flatnonzero((cell_bytes > MAX_LINE_CHARACTERS) & ~too_long):
            reject(BadRow(source, file, number + int(row), "cell too long", f"{cell_bytes[row]} bytes in {name!r}"))
        too_long |= cell_bytes > MAX_LINE_CHARACTERS
    kept = np.flatnonzero(~too_long)
    ends = np.cumsum(np.sum(list(by_column.values()), axis=0)[kept])
    begin = 0
    while begin < len(kept):
        before = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, before + CHUNK_BYTES, "right")), begin + 1)
        rows = kept[begin:end]
        if rows[-1] - rows[0] + 1 == len(rows):
            part = batch.slice(int(rows[0]), len(rows))
            columns = {name: plain(part.column(name)) for name in names}
        else:
            columns = {name: plain(batch.column(name)).take(pa.array(rows)) for name in names}
        yield Chunk([number + int(row) for row in rows], columns)
        begin = end
