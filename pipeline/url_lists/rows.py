"""What the readers of all formats share: chunks of rows, unusable rows, and checks of the columns."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lotlip_data.manifests.errors import UserError

BATCH_ROWS = 8192
"""Largest number of rows of a chunk."""
CHUNK_BYTES = 32 << 20
"""Size of the cells after which a chunk ends, so that long cells do not need more memory than short ones."""
MAX_LINE_CHARACTERS = 1 << 20
"""A longer line, row of a CSV, or cell of a Parquet file (in bytes) makes its row unusable."""
LINE_TOO_LONG = "line too long"
"""The reason of a row whose line is longer."""
NO_TEXTS_HINT = (
    ". Name other columns in `url`, `text` or `filter` of this source. If the list has no texts, set `text: null`"
)
SURROGATES = re.compile("[\ud800-\udfff]")


class ListError(UserError):
    """A list file cannot be read. The message names the file and the fix."""


class MissingColumnError(ListError):
    """A file lacks a requested column. The message is the finding and a hint for the manifest of a list."""

    def __init__(self, finding: str, hint: str = "", column: str = "") -> None:
        super().__init__(finding + hint)
        self.finding, self.column = finding, column


@dataclass(frozen=True)
class BadRow:
    """An unusable row. `row` counts from 1, without the header. `content` may be shortened."""

    source: str
    file: str
    row: int
    reason: str
    content: str


Reject = Callable[[BadRow], None]
Remark = Callable[[str], None]
"""Receives what was detected in a file, as a sentence for people."""


@dataclass(frozen=True)
class Chunk:
    """Rows of a file: their numbers, and the requested columns with the file's own values."""

    rows: Sequence[int]
    columns: dict[str, list[Any] | pa.Array]


@dataclass(frozen=True)
class Columns:
    """The columns that are read of a list, by what their cells must hold."""

    values: tuple[str, ...]
    """Columns whose cells are one text or number each, such as the URL."""
    texts: tuple[str, ...] = ()
    """Columns whose cells can also be lists of such."""
    others: tuple[str, ...] = ()
    """Columns of any type, such as those of a filter."""

    @property
    def names(self) -> list[str]:
        """All columns, each once."""
        return list(dict.fromkeys([*self.values, *self.texts, *self.others]))


Row = tuple[int, tuple[Any, ...], int]
"""Row number, the values of the requested columns, and their size in bytes or characters."""


def chunked(rows: Iterator[Row], columns: Sequence[str]) -> Iterator[Chunk]:
    """Gather rows into chunks of at most `BATCH_ROWS` rows and about `CHUNK_BYTES`."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row[2]
        if len(batch) == BATCH_ROWS or size >= CHUNK_BYTES:
            yield _to_chunk(batch, columns)
            batch, size = [], 0
    if batch:
        yield _to_chunk(batch, columns)


def _to_chunk(batch: list[Row], columns: Sequence[str]) -> Chunk:
    values = zip(*(cells for _, cells, _ in batch), strict=True)
    return Chunk([number for number, _, _ in batch], dict(zip(columns, map(list, values), strict=True)))


def positions(columns: Iterable[str], names: Sequence[str], file: str, hint: str = "") -> list[int]:
    """The position of each column.

    Args:
        columns: The requested columns.
        names: The columns of the file.
        file: The file, for error messages.
        hint: End of the message about a missing column.

    Raises:
        MissingColumnError: A requested column is missing.
        ListError: The file has it twice.
    """
    for column in columns:
        if column not in names:
            shown = ", ".join(repr(clip(name, 60)) for name in names[:40])
            same = [name for name in names if name.lower() == column.lower()]
            nearest = same or difflib.get_close_matches(column, names, 1, 0.8)
            suggestion = f" (did you mean {clip(nearest[0], 60)!r}?)" if nearest else ""
            finding = f"{file}: has no column {column!r}{suggestion}; its columns are {shown}"
            raise MissingColumnError(finding, hint, column)
        if names.count(column) > 1:
            places = " and ".join(str(place) for place, name in enumerate(names, 1) if name == column)
            raise ListError(
                f"{file}: has the column {column!r} twice, as columns {places}; rename one of them, or choose another"
            )
    return [names.index(column) for column in columns]


def clip(text: str, length: int = 1000) -> str:
    """The first `length` characters, without surrogates."""
    return SURROGATES.sub("\ufffd", text[:length])
