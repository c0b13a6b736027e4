"""Figures over all rows of many Parquet files, in short steps: each request continues where the last one stopped.

One row group of the needed columns is in memory at a time, and what a scan keeps does not grow with the rows.
"""

import collections
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.reporting.escaping import escape_invisible
from lotlip_data.pipeline.viewer.paging import Filter, Position, open_file

SORTED_ROWS = 1000
"""Number of rows that a sorted list has."""
REASONS = 10_000
"""Number of different reasons that are counted one by one."""
REASON_CHARACTERS = 200
"""Reasons with the same first characters are counted as one, because messages may end with a name or a number."""
CACHED_SCANS = 16


class Scan:
    """A pass over all rows.

    Args:
        files: URLs of the Parquet files, in order.
        columns: The columns to read, as far as a file has them.
        add: Takes the number of a file, the number of a row in it, and a table with the rows from there on.
        schema: The schema of every file; None if files differ.
    """

    def __init__(
        self,
        files: Sequence[str],
        columns: Sequence[str],
        add: Callable[[int, int, pa.Table], None],
        schema: pa.Schema | None = None,
    ) -> None:
        self.files = len(files)
        self.files_read, self.rows, self.complete = 0, 0, False
        self.damaged: list[str] = []
        """Files that cannot be read, each with the reason."""
        self._lock = threading.Lock()
        self._steps = self._iterate(files, columns, add, schema)

    def advance(self, seconds: float) -> None:
        """Continue for at most `seconds` plus one row group."""
        deadline = time.monotonic() + seconds
        with self._lock:
            for _ in self._steps:
                if time.monotonic() >= deadline:
                    return
            self.complete = True

    def _iterate(
        self,
        files: Sequence[str],
        columns: Sequence[str],
        add: Callable[[int, int, pa.Table], None],
        schema: pa.Schema | None,
    ) -> Iterator[None]:
        for number, url in enumerate(files):
            first = 0
            try:
                with open_file(url, schema) as content:
                    names = [name for name in columns if name in content.schema_arrow.names]
                    for group in range(content.num_row_groups):
                        table = content.read_row_group(group, columns=names)
                        add(number, first, table)
                        first += table.num_rows
                        self.rows += table.num_rows
                        yield
            except UserError as error:
                self.damaged.append(str(error))
                yield
            self.files_read = number + 1


def reason_label(reason: str) -> str:
    """Return what stands for a reason in menus and URLs: its first characters, with invisible ones spelled out."""
    return escape_invisible(reason[:REASON_CHARACTERS]).strip()


class ReasonCounts:
    """The rows of the quarantine by reason. `columns`: the columns that may hold one."""

    def __init__(self, files: Sequence[str], columns: Sequence[str]) -> None:
        self.counts: Counter[str] = Counter()
        """By the label of the reason."""
        self.others = 0
        """Rows with further reasons, of which there are too many to count each."""
        self.scan = Scan(files, columns, self._add)

    def _add(self, file: int, first: int, table: pa.Table) -> None:
        for column in table.columns:
            for entry in pc.value_counts(column).to_pylist():
                if entry["values"] is None:
                    continue
                label = reason_label(entry["values"])
                if label in self.counts or len(self.counts) < REASONS:
                    self.counts[label] += entry["counts"]
                else:
                    self.others += entry["counts"]


class Matches:
    """The number of rows that match a filter and, with a key, the positions of the first rows in the order of the key.

    Args:
        files: URLs of the Parquet files, in order.
        filter_: Which rows match.
        schema: The schema of every file.
        key_columns: The columns that `key` needs.
        key: Returns float [rows] of a table; rows with smaller values come first, rows with NaN last. None: no order.
    """

    def __init__(
        self,
        files: Sequence[str],
        filter_: Filter,
        schema: pa.Schema,
        key_columns: Sequence[str] = (),
        key: Callable[[pa.Table], np.ndarray] | None = None,
    ) -> None:
        self.count = 0
        self._filter, self._key = filter_, key
        self._keys = np.zeros(0)
        self._rows = np.zeros((0, 2), np.int64)
        columns = dict.fromkeys([*filter_.columns, *key_columns]) or schema.names[:1]
        self.scan = Scan(files, list(columns), self._add, schema)

    @property
    def positions(self) -> list[Position]:
        """The positions of at most SORTED_ROWS matching rows among those scanned, in order."""
        return [Position(file, row) for file, row in self._rows.tolist()]

    def _add(self, file: int, first: int, table: pa.Table) -> None:
        is_match = np.ones(len(table), bool) if self._filter.match is None else self._filter.match(table)
        rows = np.flatnonzero(is_match)
        self.count += len(rows)
        if self._key is None or not len(rows):
            return
        keys = np.concatenate([self._keys, self._key(table)[rows]])
        positions = np.concatenate([self._rows, np.stack([np.full(len(rows), file), first + rows], axis=1)])
        order = np.lexsort((positions[:, 1], positions[:, 0], keys))[:SORTED_ROWS]
        self._keys, self._rows = keys[order], positions[order]


class ScanCache:
    """The scans of the last lists that were shown, by what they depend on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scans: collections.OrderedDict[Hashable, ReasonCounts | Matches] = collections.OrderedDict()

    def reasons(self, key: Hashable, make: Callable[[], ReasonCounts]) -> ReasonCounts:
        """Return the counts of a key; `make` starts them."""
        counts = self._get(key, make)
        assert isinstance(counts, ReasonCounts)
        return counts

    def matches(self, key: Hashable, make: Callable[[], Matches]) -> Matches:
        """Return the matches of a key; `make` starts them."""
        matches = self._get(key, make)
        assert isinstance(matches, Matches)
        return matches

    def _get(self, key: Hashable, make: Callable[[], ReasonCounts | Matches]) -> ReasonCounts | Matches:
        with self._lock:
            if key not in self._scans:
                self._scans[key] = make()
            self._scans.move_to_end(key)
            while len(self._scans) > CACHED_SCANS:
                self._scans.popitem(last=False)
            return self._scans[key]
