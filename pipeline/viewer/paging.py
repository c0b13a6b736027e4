"""Pages of rows out of many Parquet files: from any row, forwards or backwards, one row group in memory at a time.

A page ends when it is full or when its time is up; either way it says where one can go on.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage

Row = dict[str, Any]
_PLACE = re.compile(r"([0-9]{1,12})\.([0-9]{1,12})")


class Place(NamedTuple):
    """A row of a file, both counted from 0. Places are in the order of the rows."""

    file: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}.{self.row}"

    @classmethod
    def parse(cls, text: str) -> "Place | None":
        """The place that `str` wrote; None for anything else."""
        found = _PLACE.fullmatch(text)
        return cls(int(found[1]), int(found[2])) if found else None


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


def page_at(
    files: Sequence[str],
    wanted: Filter,
    place: Place,
    size: int,
    seconds: float,
    *,
    backwards: bool = False,
    columns: pa.Schema | None = None,
) -> Page:
    """The first `size` wanted rows at or after `place`; backwards, the last ones before it.

    A file with other columns than `columns`, where these are given, counts as damaged.
    """
    page = Page(before=place if place > START else None)
    until = time.monotonic() + seconds
    on: Place | None = None
    for part in _Walk(files, wanted, place, size + 1, backwards, columns).parts():
        page.looked_at += part.rows
        page.damaged += part.damaged
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


@dataclass(frozen=True)
class _Part:
    """A row group, or what of it is on this side of the place; or a file that cannot be read."""

    beyond: Place | None
    """Where one goes on behind it; None at the end."""
    rows: int = 0
    wanted: list[tuple[Place, Row]] = field(default_factory=list)
    """Nearest first."""
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Walk:
    """From a place through the files, in one direction; at most `most` rows are read of a row group."""

    files: Sequence[str]
    wanted: Filter
    place: Place
    most: int
    backwards: bool
    columns: pa.Schema | None

    def parts(self) -> Iterator[_Part]:
        first = min(self.place.file, len(self.files) - 1)
        for file in range(first, -1, -1) if self.backwards else range(self.place.file, len(self.files)):
            try:
                yield from self._of(file)
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                told = f"{self.files[file]}: cannot be read ({error}). Run `lotlip-data verify` on the run."
                yield _Part(self._beyond(file), damaged=[told])

    def _of(self, file: int) -> Iterator[_Part]:
        here = file == self.place.file
        least, end = (0, self.place.row if here else None) if self.backwards else (self.place.row if here else 0, None)
        with storage.open_read(self.files[file]) as stream:
            content = pq.ParquetFile(stream, pre_buffer=False)
            if self.columns is not None and not content.schema_arrow.equals(self.columns):
                raise ValueError(f"it has other columns than the dataset: {', '.join(content.schema_arrow.names)}")
            groups = _groups(content, least, end)
            for group, first, low, high in reversed(groups) if self.backwards else groups:
                found = _wanted(content, group, self.wanted, low - first, high - first, self.most, self.backwards)
                if self.backwards:
                    beyond = Place(file, low) if low else self._beyond(file)
                else:
                    beyond = Place(file, high) if high < content.metadata.num_rows else self._beyond(file)
                yield _Part(beyond, high - low, [(Place(file, first + index), row) for index, row in found])

    def _beyond(self, file: int) -> Place | None:
        """Where one goes on when a file is done with."""
        if self.backwards:
            return Place(file, 0) if file else None
        return Place(file + 1, 0) if file + 1 < len(self.files) else None


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
