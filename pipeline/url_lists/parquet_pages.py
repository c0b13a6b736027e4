"""Reads the footer of a Parquet file and the headers of its pages, to know sizes before anything is decompressed.

pyarrow decompresses whole pages, and a page of a few kilobytes can hold a text of gigabytes. It does not show the
headers of pages, and a damaged footer ends the process when its properties of columns are read. Footer and headers are
Thrift structs in the compact protocol; each header stands before the page that it describes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa

_HEADER_BYTES = 1 << 16
_TRAILER = struct.Struct("<I4s")
_CODECS = ("uncompressed", "snappy", "gzip", "lzo", "brotli", "lz4", "zstd", "lz4_raw")
_BYTE_TYPES = (6, 7)
"""Physical types of byte arrays: of variable and of fixed length."""
_DICTIONARY_PAGE = 2
_DELTA_BYTE_ARRAY = 7
_ENCODINGS = {5: 2, 7: 2, 8: 4}
"""Structs of a page header by number, for data pages, dictionary pages and data pages of version 2: the number of their
field for the encoding. Their first field is the number of values."""
_DAMAGES = (
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    StopIteration,
    struct.error,
    RecursionError,
    UnicodeDecodeError,
)


class ParquetDamageError(OSError):
    """The footer of a file or a header in it is damaged."""


@dataclass(frozen=True)
class ColumnChunk:
    """The values of one column in one row group, as the footer describes them."""

    path: str
    """The column, with the fields and list elements in it: `caption.list.element`."""
    holds_bytes: bool
    """Whether its values are texts or bytes, whose size varies."""
    codec: str
    values: int
    uncompressed_bytes: int
    compressed_bytes: int
    place: int
    """Offset of its first page in the file."""
    has_prefixes: bool = False
    """Whether values can be written as prefixes of the value before, so that they can be longer than their page."""


def column_chunks(stream: IO[bytes]) -> list[list[ColumnChunk]]:
    """The column chunks of each row group of a file.

    Raises:
        ParquetDamageError: The footer is damaged.
    """
    end = stream.seek(0, 2)
    stream.seek(end - _TRAILER.size)
    try:
        length, _ = _TRAILER.unpack(stream.read(_TRAILER.size))
        stream.seek(end - _TRAILER.size - length)
        footer = _CompactReader(stream.read(length)).fields()
        return [[_column_chunk(chunk[3]) for chunk in group[1]] for group in footer.get(4, ())]
    except _DAMAGES as error:
        raise ParquetDamageError("the footer of the Parquet file is damaged") from error


def _column_chunk(fields: dict[int, Any]) -> ColumnChunk:
    """A column chunk from the struct ColumnMetaData of the Parquet format."""
    chunk = ColumnChunk(
        path=".".join(part.decode() for part in fields[3]),
        holds_bytes=fields[1] in _BYTE_TYPES,
        codec=_CODECS[fields[4]],
        values=fields[5],
        uncompressed_bytes=fields[6],
        compressed_bytes=fields[7],
        place=min(fields[9], fields.get(11) or fields[9]),
        has_prefixes=_DELTA_BYTE_ARRAY in fields[2],
    )
    if min(chunk.values, chunk.uncompressed_bytes, chunk.compressed_bytes, chunk.place) < 0:
        raise ValueError("a negative size")
    return chunk


@dataclass(frozen=True)
class Page:
    """One page of a column chunk."""

    place: int
    """Offset of its data in the file, after the header."""
    compressed_bytes: int
    uncompressed_bytes: int
    values: int
    is_dictionary: bool
    has_prefixes: bool = False
    """As that of `ColumnChunk`. A single value is not longer than the page."""


def pages(stream: IO[bytes], chunk: ColumnChunk) -> Iterator[Page]:
    """The pages of a column chunk. Only their headers are read.

    Raises:
        ParquetDamageError: The headers are damaged.
    """
    place = chunk.place
    end = place + chunk.compressed_bytes
    while place < end:
        stream.seek(place)
        try:
            header = _CompactReader(stream.read(min(_HEADER_BYTES, end - place)))
            fields = header.fields()
            content, encoding = next(
                (fields[number], field) for number, field in _ENCODINGS.items() if number in fields
            )
            sizes = fields[3], fields[2]
            is_dictionary, has_prefixes = fields[1] == _DICTIONARY_PAGE, content.get(encoding) == _DELTA_BYTE_ARRAY
            page = Page(place + header.place, *sizes, content[1], is_dictionary, has_prefixes)
            if min(sizes) < 0:
                raise ValueError("a negative size")
        except _DAMAGES as error:
            raise ParquetDamageError(f"the page header at byte {place} is damaged") from error
        yield page
        place = page.place + page.compressed_bytes


def longest_dictionary_value(stream: IO[bytes], page: Page, codec: str) -> int:
    """The length in bytes of the longest value in a dictionary page of byte arrays, or a bound of it."""
    stream.seek(page.place)
    data = stream.read(page.compressed_bytes)
    if codec != "uncompressed":
        try:
            data = pa.Codec(codec).decompress(data, page.uncompressed_bytes, asbytes=True)
        except (ValueError, NotImplementedError, OSError):  # for example LZ4 as Hadoop frames it
            return page.uncompressed_bytes
    longest = place = 0
    while place + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, place)
        longest, place = max(longest, length), place + 4 + length
    return int(longest)


class _CompactReader:
    """Parses values of Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self._data, self.place = data, 0

    def fields(self) -> dict[int, Any]:
        """The fields of a struct by their ids."""
        fields: dict[int, Any] = {}
        number = 0
        while byte := self._byte():
            step, kind = byte >> 4, byte & 15
            number = number + step if step else self._zigzag()
            fields[number] = self._value(kind)
        return fields

    def _value(self, kind: int, is_element: bool = False) -> Any:
        if kind in (1, 2):
            return self._byte() == 1 if is_element else kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            return self._list()
        if kind == 12:
            return self.fields()
        raise KeyError(f"Parquet files have no Thrift type {kind}")

    def _list(self) -> list[Any]:
        byte = self._byte()
        length = byte >> 4 if byte >> 4 != 15 else self._varint()
        return [self._value(byte & 15, is_element=True) for _ in range(length)]

    def _bytes(self, length: int) -> bytes:
        self.place += length
        if self.place > len(self._data):
            raise IndexError
        return self._data[self.place - length : self.place]

    def _byte(self) -> int:
        self.place += 1
        return self._data[self.place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
