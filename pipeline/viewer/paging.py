"""Pages of rows from many Parquet files: from any row, forwards or backwards, with one row group in memory at a time.

A page ends when it is full or when its time limit is reached. Either way it says where the next and previous pages are.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.errors import UserError

Row = dict[str, Any]
_POSITION = re.compile(r"([0-9]{1,12})\.([0-9]{1,12})")


class Position(NamedTuple):
    """A row of a file, both counted from 0. Positions sort in row order."""

    file: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}.{self.row}"

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """Return the position that `str` wrote, or None for any other text."""
        match = _POSITION.fullmatch(text)
        return cls(int(match[1]), int(match[2])) if match else None


START = Position(0, 0)


@dataclass(frozen=True)
class Filter:
    """Selects rows: `match` maps a table with `columns` to a bool array [rows]. Without `match`, every row matches."""

    columns: Sequence[str] = ()
    match: Callable[[pa.Table], np.ndarray] | None = None


@dataclass
class Page:
    """Rows with their positions, in row order, and the positions of the neighbouring pages."""

    rows: list[tuple[Position, Row]] = field(default_factory=list)
    before: Position | None = None
    """The previous page ends before this position; None if there is none."""
    after: Position | None = None
    """The next page starts at this position; None if there is none."""
    scanned: int = 0
    """Number of rows examined."""
    complete: bool = True
    """Whether the page is full or the end is reached; False if the time limit ended the page."""
    damaged: list[str] = field(default_factory=list)
    """Files that were skipped because they cannot be read, each with the reason."""


@contextmanager
def open_file(url: str, columns: pa.Schema | None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Raises UserError if it is damaged or has another schema than `columns`."""
    with artifacts.open_parquet(url, "Run `lotlip-data verify` on the run.") as content:
        if columns is not None and not content.schema_arrow.equals(columns):
            names = ", ".join(content.schema_arrow.names)
            raise ValueError(f"its columns differ from those of the dataset: {names}")
        yield content


def iter_matches(
    files: Sequence[str], filter_: Filter, names: Sequence[str], columns: pa.Schema | None
) -> Iterator[Row | str]:
    """Yield the named columns of every matching row, in order; for a file that cannot be read, the reason as a text.

    Args:
        files: URLs of the Parquet files, in order.
        filter_: Which rows match.
        names: The columns to return, as far as a file has them.
        columns: The schema of every file; None if files differ.
    """
    for url in files:
        try:
            with open_file(url, columns) as content:
                read = [
                    name for name in dict.fromkeys([*filter_.columns, *names]) if name in content.schema_arrow.names
                ]
                for group in range(content.num_row_groups):
                    table = content.read_row_group(group, columns=read)
                    if filter_.match is not None:
                        table = table.filter(pa.array(filter_.match(table)))
                    yield from table.select([name for name in names if name in read]).to_pylist()
        except UserError as error:
            yield str(error)


def read_page(
    files: Sequence[str],
    filter_: Filter,
    position: Position,
    size: int,
    seconds: float,
    *,
    backwards: bool = False,
    columns: pa.Schema | None = None,
) -> Page:
    """Return the first matching rows at or after a position, or, backwards, the last ones before it.

    Args:
        files: URLs of the Parquet files, in order.
        filter_: Which rows match.
        position: Where the page starts; backwards, where it ends, exclusive.
        size: Maximum number of rows.
        seconds: Time limit. The row group in progress is finished.
        backwards: Read towards the start.
        columns: The schema of every file. A file with another schema is reported as damaged.
    """
    page = Page(before=position if position > START else None)
    deadline = time.monotonic() + seconds
    next_position: Position | None = None
    for step in _Scan(files, filter_, position, size + 1, backwards, columns).steps():
        page.scanned += step.rows
        page.damaged += step.damaged
        space_left = size - len(page.rows)
        page.rows += step.matches[:space_left]
        if len(step.matches) > space_left:
            next_position = page.rows[-1][0] if backwards else step.matches[space_left][0]
            break
        if time.monotonic() >= deadline:
            next_position, page.complete = step.beyond, step.beyond is None
            break
    if not backwards:
        page.after = next_position
        return page
    page.rows.reverse()
    page.before, page.after = next_position, position
    return page


@dataclass(frozen=True)
class _Step:
    """A row group, or its part on this side of the start position; or a file that cannot be read."""

    beyond: Position | None
    """Where the scan continues after this step; None at the end."""
    rows: int = 0
    matches: list[tuple[Position, Row]] = field(default_factory=list)
    """In scan order."""
    damaged: list[str] = field(default_factory=list)


class _RowRange(NamedTuple):
    """Rows `low` to `high` (exclusive) of a file, which lie in one row group that starts at row `first`."""

    group: int
    first: int
    low: int
    high: int


@dataclass(frozen=True)
class _Scan:
    """A scan from a position through the files in one direction; keeps at most `limit` matches per row group."""

    files: Sequence[str]
    filter: Filter
    start: Position
    limit: int
    backwards: bool
    columns: pa.Schema | None

    def steps(self) -> Iterator[_Step]:
        for file in self._file_numbers():
            try:
                yield from self._steps_of(file)
            except UserError as error:
                yield _Step(self._beyond(file), damaged=[str(error)])

    def _file_numbers(self) -> range:
        if self.backwards:
            return range(min(self.start.file, len(self.files) - 1), -1, -1)
        return range(self.start.file, len(self.files))

    def _steps_of(self, file: int) -> Iterator[_Step]:
        is_first = file == self.start.file
        low = self.start.row if is_first and not self.backwards else 0
        high = self.start.row if is_first and self.backwards else None
        with open_file(self.files[file], self.columns) as content:
            ranges = _row_ranges(content, low, high)
            for rows in reversed(ranges) if self.backwards else ranges:
                matches = [(Position(file, row), content_row) for row, content_row in self._matches(content, rows)]
                yield _Step(self._beyond_range(content, file, rows), rows.high - rows.low, matches)

    def _matches(self, content: pq.ParquetFile, rows: _RowRange) -> list[tuple[int, Row]]:
        """Return the first matching rows of a row group with their numbers; reads whole rows only if any matches."""
        numbers = np.arange(rows.low - rows.first, rows.high - rows.first)
        if self.filter.match is not None:
            is_match = self.filter.match(content.read_row_group(rows.group, columns=list(self.filter.columns)))
            numbers = numbers[is_match[numbers]]
        numbers = numbers[::-1][: self.limit] if self.backwards else numbers[: self.limit]
        if not len(numbers):
            return []
        matches: list[Row] = content.read_row_group(rows.group).take(pa.array(numbers)).to_pylist()
        return list(zip((numbers + rows.first).tolist(), matches, strict=True))

    def _beyond_range(self, content: pq.ParquetFile, file: int, rows: _RowRange) -> Position | None:
        """Return where the scan continues after some rows of a file."""
        if self.backwards:
            return Position(file, rows.low) if rows.low else self._beyond(file)
        return Position(file, rows.high) if rows.high < content.metadata.num_rows else self._beyond(file)

    def _beyond(self, file: int) -> Position | None:
        """Return where the scan continues after a whole file."""
        if self.backwards:
            return Position(file, 0) if file else None
        return Position(file + 1, 0) if file + 1 < len(self.files) else None


def _row_ranges(content: pq.ParquetFile, low: int, high: int | None) -> list[_RowRange]:
    """Return rows `low` to `high` (exclusive; None is the end of the file) by row group."""
    ranges, first = [], 0
    for group in range(content.num_row_groups):
        end = first + content.metadata.row_group(group).num_rows
        group_low, group_high = max(first, low), end if high is None else min(end, high)
        if group_low < group_high:
            ranges.append(_RowRange(group, first, group_low, group_high))
        first = end
    return ranges
