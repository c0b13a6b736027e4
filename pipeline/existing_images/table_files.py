"""Opens tables with image bytes, Parquet and Arrow files alike: their columns, their sizes, and their rows in batches.

What a file is, its first bytes decide. Of a Parquet file, a batch has as few rows as its largest cells demand; a row
group with a page of more than `MAX_PAGE_BYTES` is left out. The batches of an Arrow file are those that it was written
in; of a local file they are mapped into memory, not read.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.pipeline.url_lists.files import check_parquet
from lotlip_data.pipeline.url_lists.parquet_pages import column_chunks
from lotlip_data.pipeline.url_lists.parquet_rows import RowGroupTooLargeError, fixed_bytes, rows_in_memory
from lotlip_data.pipeline.url_lists.rows import ListError

MAX_PAGE_BYTES = 1 << 30
"""Largest page of a Parquet file that is decompressed. Writers put up to a thousand images into a page."""
_READ_BYTES, _METADATA_BYTES = 1 << 23, 1 << 16
_SHARE = 8
"""Part of the memory for a batch of a list that a batch of images takes: more rows at once are not faster."""
_ARROW_FILE, _ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"


@dataclass(frozen=True)
class LeftOut:
    """Rows of a table that cannot be read in bounded memory."""

    rows: int
    reason: str


class ParquetTable:
    """An open Parquet file with images."""

    is_sequential = False

    def __init__(self, stream: IO[bytes], url: str) -> None:
        """Read the footer of a file.

        Args:
            stream: The file, seekable.
            url: Its path or URL, for messages.
        """
        check_parquet(stream, url)
        # As for lists: pre-buffering would keep all data, and without a buffer a column chunk is held whole.
        self._file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES)
        self._stream = stream

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def part_lengths(self) -> Iterator[int]:
        """The numbers of rows of the row groups."""
        metadata = self._file.metadata
        return (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))

    def batches(self, columns: Sequence[str], first: int, rows: int | None) -> Iterator[pa.RecordBatch | LeftOut]:
        """These columns of the rows from `first` on, and what is left out of them."""
        chunks = column_chunks(self._stream)
        widths = {name: fixed_bytes(self.schema.field(name).type) for name in columns}
        start = 0
        for group, length in enumerate(self.part_lengths()):
            begin, end = _overlap(start, length, first, rows)
            start += length
            if begin >= end:
                continue
            try:
                rows_at_once = rows_in_memory(self._stream, chunks[group], length, widths, MAX_PAGE_BYTES)
            except RowGroupTooLargeError as error:
                yield LeftOut(end - begin, f"row group {group}: {error}")
                continue
            place = 0
            size = max(rows_at_once // _SHARE, 1)
            for batch in self._file.iter_batches(size, row_groups=[group], columns=list(columns), use_threads=False):
                part = batch.slice(max(begin - place, 0), max(end - max(begin, place), 0))
                place += batch.num_rows
                if part.num_rows:
                    yield part
                if place >= end:
                    break


class ArrowTable:
    """An open Arrow file, of the stream format (as `datasets` writes it) or the file format (Feather)."""

    is_sequential = True
    """Whether a row is reached by reading all rows before it, and batches can be cut anywhere."""

    def __init__(self, source: pa.NativeFile, is_stream: bool) -> None:
        self._reader = pa.ipc.open_stream(source) if is_stream else pa.ipc.open_file(source)
        self._is_stream = is_stream

    @property
    def schema(self) -> pa.Schema:
        return self._reader.schema

    def part_lengths(self) -> Iterator[int]:
        """The numbers of rows of the batches. A stream can then not be read again."""
        return (batch.num_rows for batch in self._batches())

    def batches(self, columns: Sequence[str], first: int, rows: int | None) -> Iterator[pa.RecordBatch | LeftOut]:
        """These columns of the rows from `first` on."""
        start = 0
        for batch in self._batches():
            begin, end = _overlap(start, batch.num_rows, first, rows)
            start += batch.num_rows
            if begin < end:
                part = batch.select(list(columns)).slice(begin, end - begin)
                for name in columns:
                    _check_offsets(part.column(name))
                yield part
            if rows is not None and start >= first + rows:
                return

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if self._is_stream:
            yield from self._reader
        else:
            for number in range(self._reader.num_record_batches):
                yield self._reader.get_batch(number)


Table = ParquetTable | ArrowTable


@contextmanager
def open_table(url: str, only_metadata: bool = False) -> Iterator[Table]:
    """Open a table.

    Args:
        url: The table, as a path or URL.
        only_metadata: Whether its rows are not read, so that little is read ahead.

    Raises:
        ListError: The file is of another kind.
        ArrowException: It is damaged. Arrow also raises OSError.
    """
    with storage.open_read(url, _METADATA_BYTES if only_metadata else _READ_BYTES) as stream:
        head = stream.read(len(_ARROW_FILE))
        try:
            stream.seek(0)
        except ValueError:
            raise ListError(f"{url}: its server sends only whole files; download it to read it as a table") from None
        if not head.startswith((_ARROW_FILE, _ARROW_STREAM)):
            yield ParquetTable(stream, url)
            return
        is_stream = not head.startswith(_ARROW_FILE)
        if storage.is_local(url):
            with pa.memory_map(storage.normalise(url)) as mapped:
                yield ArrowTable(mapped, is_stream)
        else:
            yield ArrowTable(pa.PythonFile(stream), is_stream)


def _overlap(start: int, length: int, first: int, rows: int | None) -> tuple[int, int]:
    """Begin and end, within a part of `length` rows that begins at `start`, of the rows from `first` on."""
    end = length if rows is None else min(first + rows - start, length)
    return max(first - start, 0), end


def _check_offsets(values: pa.Array) -> None:
    """Raise ArrowInvalid if the cells of a column do not lie in its data: Arrow does not check it when it reads."""
    if pa.types.is_string(values.type):  # that texts are UTF-8 is checked row by row
        values = values.view(pa.binary())
    elif pa.types.is_large_string(values.type):
        values = values.view(pa.large_binary())
    values.validate(full=True)
