"""An out-of-core bucket sort: rows are spilled to disk by a uint64 `order`, and read back bucket by bucket in order."""

import math
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BUCKET_BYTES = 8 << 20
"""Text per bucket. The memory that processes a bucket is a small multiple of it."""

BUFFER_BYTES = 32 << 20
"""Bytes of rows that are gathered before they are appended to the buckets."""

_POOL = pa.system_memory_pool()
"""Returns freed memory to the operating system. Arrow's default pool keeps more of it with every bucket."""


def bucket_count(total_bytes: float) -> int:
    """Number of buckets for this much text: at most 4096, since each bucket is a file."""
    return min(max(math.ceil(total_bytes / BUCKET_BYTES), 1), 4096)


class ExternalBuckets:
    """Buckets of rows in a folder: bucket k has the rows whose `order` is in the k-th of `count` equal ranges.

    The memory in use is about three times `buffer_bytes` while rows are added, and one bucket while they are read.
    Within a bucket, rows are in the order in which they were added.

    Args:
        folder: An empty folder on this machine.
        count: Number of buckets.
        schema: Schema of the rows, with a uint64 column `order`.
        buffer_bytes: Bytes of rows that are gathered before they are appended to the files.
    """

    def __init__(self, folder: pathlib.Path, count: int, schema: pa.Schema, buffer_bytes: int) -> None:
        self._folder, self.count, self.schema, self._limit = folder, count, schema, buffer_bytes
        self._waiting: list[pa.Table] = []
        self._bytes = 0

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        self._waiting.append(table)
        self._bytes += table.nbytes
        if self._bytes >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Append the gathered rows to the files. Each append is a complete Arrow stream, so no file stays open."""
        if not any(table.num_rows for table in self._waiting):
            return
        table = pa.concat_tables(self._waiting, memory_pool=_POOL).combine_chunks(memory_pool=_POOL)
        self._waiting, self._bytes = [], 0
        # The upper half of the order, times the count, shifted: a row's bucket does not depend on the other rows.
        bucket = ((table["order"].to_numpy() >> np.uint64(32)) * np.uint64(self.count)) >> np.uint64(32)
        by_bucket = np.argsort(bucket, kind="stable")
        table = pc.take(table, pa.array(by_bucket), memory_pool=_POOL)
        numbers, starts = np.unique(bucket[by_bucket], return_index=True)
        for number, begin, end in zip(numbers, starts, [*starts[1:], table.num_rows], strict=True):
            with open(self._file(int(number)), "ab") as file, pa.ipc.new_stream(file, self.schema) as stream:
                stream.write_table(table.slice(begin, end - begin))

    def __iter__(self) -> Iterator[pa.Table]:
        """The buckets that have rows, in order."""
        return (self.bucket(number) for number in range(self.count) if self._file(number).exists())

    def bucket(self, number: int) -> pa.Table:
        """One bucket by its number, which starts at 0. An empty bucket is a table without rows."""
        return self._read(number) if self._file(number).exists() else self.schema.empty_table()

    def remove(self, number: int) -> None:
        """Remove the file of a bucket that is no longer needed."""
        self._file(number).unlink(missing_ok=True)

    def _file(self, number: int) -> pathlib.Path:
        return self._folder / f"bucket-{number:05d}.arrow"

    def _read(self, number: int) -> pa.Table:
        parts = []
        with pa.OSFile(str(self._file(number)), memory_pool=_POOL) as file:
            while file.tell() < file.size():
                parts.append(pa.ipc.open_stream(file, memory_pool=_POOL).read_all())
        return pa.concat_tables(parts, memory_pool=_POOL)
