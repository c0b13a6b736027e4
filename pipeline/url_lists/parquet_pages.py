"""Reads the headers of a Parquet file's pages, to know the size of its cells before any of them is decompressed.

pyarrow decompresses whole pages, and a page of a few kilobytes can hold a text of gigabytes. The headers are Thrift
structs in the compact protocol, each before the page that it describes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

_HEADER_BYTES = 1 << 16
_DICTIONARY_PAGE = 2
_TYPE, _UNCOMPRESSED, _COMPRESSED = 1, 2, 3
_PAGE_STRUCTS = (5, 7, 8)
"""Fields with the properties of a data page, a dictionary page and a data page of version 2: field 1 is its values."""


@dataclass(frozen=True)
class Page:
    """One page of a column chunk."""

    place: int
    """Offset of its data in the file, after the header."""
    compressed_bytes: int
    uncompressed_bytes: int
    values: int
    is_dictionary: bool


def pages(stream: IO[bytes], chunk: pq.ColumnChunkMetaData) -> Iterator[Page]:
    """The pages of a column chunk. Only their headers are read.

    Raises:
        OSError: The headers are damaged.
    """
    place = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
        place = min(place, chunk.dictionary_page_offset)
    end = place + chunk.total_compressed_size
    while place < end:
        stream.seek(place)
        try:
            header = _CompactReader(stream.read(min(_HEADER_BYTES, end - place)))
            fields = header.fields()
            properties = next(fields[name] for name in _PAGE_STRUCTS if name in fields)
            sizes = fields[_COMPRESSED], fields[_UNCOMPRESSED]
            page = Page(place + header.place, *sizes, properties[1], fields[_TYPE] == _DICTIONARY_PAGE)
            if min(sizes) < 0:
                raise ValueError("a negative size")
        except (IndexError, KeyError, TypeError, ValueError, StopIteration) as error:
            raise OSError(f"the page header at byte {place} is damaged") from error
        yield page
        place = page.place + page.compressed_bytes


def longest_dictionary_value(stream: IO[bytes], page: Page, compression: str) -> int:
    """The length in bytes of the longest value in a dictionary page of byte arrays, or a bound of it."""
    stream.seek(page.place)
    data = stream.read(page.compressed_bytes)
    if compression != "UNCOMPRESSED":
        try:
            data = pa.Codec(compression.lower()).decompress(data, page.uncompressed_bytes, asbytes=True)
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

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._varint())
        if kind == 12:
            return self.fields()
        raise KeyError(f"page headers have no Thrift type {kind}")

    def _skip(self, length: int) -> None:
        self.place += length
        if self.place > len(self._data):
            raise IndexError

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
