"""Rows of numbers on disk that are compared bucket by bucket, in memory that does not grow with their number."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from lotlip_data.pipeline.core.external_buckets import ExternalBuckets

ROWS_PER_BUCKET = 100_000
MAX_BUCKETS = 4096
"""A bucket is a file. From 410 million rows on, buckets have more than `ROWS_PER_BUCKET` rows."""
BUFFER_BYTES = 4 << 20
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""An odd number, so multiplication by it is one to one; it spreads clustered hashes over the buckets."""
U64 = pa.uint64()


def spread(hashes: np.ndarray) -> np.ndarray:
    """Hashes as evenly distributed values for the first column of SpilledRows; one to one, uint64 in and out."""
    with np.errstate(over="ignore"):
        return hashes * _MULTIPLIER


class SpilledRows:
    """Rows of uint64 columns on disk, read bucket by bucket; the first column decides the bucket."""

    def __init__(self, folder: Path, rows: int, *columns: str, buffer_bytes: int = BUFFER_BYTES) -> None:
        """Args:
        folder: Where the rows are spilled; created here.
        rows: The number of rows that are expected; it decides the number of buckets.
        columns: The names of the columns after the first, which is called `order`.
        buffer_bytes: Bytes of rows that are gathered before they are appended to the buckets. With thousands of
            buckets, a small buffer makes tiny appends.
        """
        folder.mkdir()
        self.rows = rows
        self.count = min(1 + rows // ROWS_PER_BUCKET, MAX_BUCKETS)
        """The number of buckets."""
        self._schema = pa.schema([(name, U64) for name in ("order", *columns)])
        self._buckets = ExternalBuckets(folder, self.count, self._schema, buffer_bytes)

    def add(self, *columns: np.ndarray) -> None:
        """Add rows: one uint64 array per column, all of the same length."""
        if len(columns[0]):
            arrays = [pa.array(column, U64) for column in columns]
            self._buckets.add(pa.Table.from_arrays(arrays, schema=self._schema))

    def flush(self) -> None:
        """Write buffered rows to disk. To be called after the last row is added and before a bucket is read."""
        self._buckets.flush()

    def bucket(self, number: int) -> list[np.ndarray]:
        """The columns of a bucket. Objects with the same `rows` have rows of the same `order` in the same bucket."""
        table = self._buckets.bucket(number)
        return [table[name].to_numpy() for name in self._schema.names]

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """The buckets with rows, in order."""
        self.flush()
        return (bucket for number in range(self.count) if len((bucket := self.bucket(number))[0]))

    def drain(self) -> Iterator[list[np.ndarray]]:
        """The buckets with rows, in order. Each is removed from disk when it has been read."""
        self.flush()
        for number in range(self.count):
            bucket = self.bucket(number)
            self._buckets.remove(number)
            if len(bucket[0]):
                yield bucket
