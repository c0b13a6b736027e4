"""Pages of rows out of many Parquet files: from any row, forwards or backwards, one row group in memory at a time.

A page ends when it is full or when its time is up; either way it says where one can go on.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage

Row = dict[str, Any]


class Place(NamedTuple):
    """A row of a file, both counted from 0. Places are in the order of the rows."""

    file: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}.{self.row}"

    @classmethod
    def parse(cls, text: str) -> "Place | None":
        """The place that `str` wrote; None for anything else."""
        file, _, row = text.partition(".")
        return cls(int(file), int(row)) if text.isascii() and file.isdigit() and row.isdigit() else None


START = Place(0, 0)


@dataclass(frozen=True)
class Filter:
    """Which rows are wanted: `match` gives bool [rows] of a table with these columns; without it, all are."""

    columns: Sequence[str] = ()
    match: Callable[[pa.Table], np.ndarray] | None = None


@dataclass
class Page:
    """Rows with their places, in order, and where one can go from here."""

    rows: list[tuple[Place, Row]] = field(default_factory=list)
    before: Place | None = None
    """The page before this one ends before this place; None where there is nothing."""
    after: Place | None = None
    """The page after this one begins at this place; None where there is nothing."""
    looked_at: int = 0
    """Rows that were looked at."""
    in_time: bool = True
    """Whether the page is full or everything was looked at; else the time was up."""
    damaged: list[str] = field(default_factory=list)
    """Files that cannot be read, each with its reason; they are passed over."""


@dataclass(frozen=True)
class _Part:
    """A row group, or what of it is on this side of a place."""

    rows: int
    wanted: list[tuple[Place, Row]]
    """Nearest first."""
    beyond: Place | None
    """Where one goes on behind it; None at the end."""


def page_at(
    files: Sequence[str], wanted: Filter, place: Place, size: int, seconds: float, *, backwards: bool = False
) -> Page:
    """The first `size` wanted rows at or after `place`; backwards, the last ones before it."""
    page = Page(before=place if place > START else None)
    until = time.monotonic() + seconds
    on: Place | None = None
    order = range(min(place.file, len(files) - 1), -1, -1) if backwards else range(place.file, len(files))
    for part in _parts(files, order, wanted, place, size + 1, backwards, page.damaged):
        page.looked_at += part.rows
        room = size - len(page.rows)
        page.rows += part.wanted[:room]
        if len(part.wanted) > room:
            on = page.rows[-1][0] if backwards else part.wanted[room][0]
            break
        if time.monotonic() >= until:
            on, page.in_time = part.beyond, part.beyond is None
            break
    if not backwards:
        page.after = on
        return page
    page.rows.reverse()
    page.before, page.after = on, place
    return page


def _parts(
    files: Sequence[str],
    order: range,
    wanted: Filter,
    place: Place,
    most: int,
    backwards: bool,
    damaged: list[str],
) -> Iterator[_Part]:
    for file in order:
        least = place.row if file == place.file and not backwards else 0
        end = place.row if file == place.file and backwards else None
        try:
            with storage.open_read(files[file]) as stream:
                content = pq.ParquetFile(stream, pre_buffer=False)
                groups = _groups(content, least, end)
                for group, first, low, high in reversed(groups) if backwards else groups:
                    rows = _wanted(content, group, wanted, low - first, high - first, most, backwards)
                    found = [(Place(file, first + index), row) for index, row in rows]
                    if backwards:
                        beyond = Place(file, low) if low or file else None
                    else:
                        at_end = high == content.metadata.num_rows
                        beyond = Place(file + at_end, 0 if at_end else high) if file + at_end < len(files) else None
                    yield _Part(high - low, found, beyond)
        except (OSError, ValueError, pa.ArrowException) as error:
            damaged.append(f"{files[file]}: cannot be read ({error}). Run `lotlip-data verify` on the run.")


def _groups(content: pq.ParquetFile, least: int, end: int | None) -> list[tuple[int, int, int, int]]:
    """Row groups that have rows from `least` to `end`: number, first row, and the rows of them that are meant."""
    found, first = [], 0
    for group in range(content.num_row_groups):
        rows = content.metadata.row_group(group).num_rows
        low, high = max(first, least), first + rows if end is None else min(first + rows, end)
        if low < high:
            found.append((group, first, low, high))
        first += rows
    return found


def _wanted(
    content: pq.ParquetFile, group: int, wanted: Filter, low: int, high: int, most: int, backwards: bool
) -> list[tuple[int, Row]]:
    """At most `most` of the wanted rows of a row group, nearest first. Whole rows are read only of groups with any."""
    chosen = np.arange(low, high)
    if wanted.match is not None:
        chosen = chosen[wanted.match(content.read_row_group(group, columns=list(wanted.columns)))[low:high]]
    chosen = chosen[::-1][:most] if backwards else chosen[:most]
    if not len(chosen):
        return []
    rows: list[Row] = content.read_row_group(group).take(pa.array(chosen)).to_pylist()
    return list(zip(chosen.tolist(), rows, strict=True))
