"""The rows of a container: what every format gives, and what is made of it by the settings of the source."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.sources.row_filter import RowFilter
from lotlip_data.pipeline.url_lists.cells import GARBLED, clean, decoder, kind_of, texts_of
from lotlip_data.pipeline.url_lists.reader import uid_of_listed_url
from lotlip_data.pipeline.url_lists.rows import MAX_LINE_CHARACTERS, SURROGATES, clip

MAX_IMAGE_BYTES = 1 << 28
"""Largest file of an image that is read; `download.max_bytes` may be less."""
MAX_TEXT_BYTES = MAX_LINE_CHARACTERS
"""Largest file or cell of texts that is read."""
MAX_NAME_CHARACTERS = 1000
"""Longest name of an image."""
MAX_ROWS = 1_000_000
"""Largest number of rows of a container, which is one shard of a run."""

NO_IMAGE = "no image"
SEVERAL_IMAGES = "several images"
DUPLICATE = "duplicate key"
NO_KEY = "no key"
NO_NAME = "no file name"
TOO_LARGE = "too large"
NOT_A_FILE = "not a plain file"
LINK_OUT = "a link out of the folder"
NO_FILE = "no such file"
NOT_READABLE = "not readable"
UNSAFE_NAME = "unsafe name"
TEXT_TOO_LONG = "text too long"
TEXT_GARBLED = "text not in UTF-8"


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used."""

    reason: str
    """One of the reasons of this module, of `url_lists.reader.uid_of_listed_url` or of `json_rows.object_of`."""
    detail: str = ""


@dataclass(frozen=True)
class Sample:
    """What a format gives for one row: cells by column, as far as columns were asked for."""

    row: int
    """Number of the row in its container, from 0."""
    name: str
    """The name of its image in the container: see `StoredImage`."""
    image: bytes | None
    """None: the image has a problem, or images were not asked for."""
    problem: Problem | None = None
    """What is wrong with the image or its name. It does not depend on the columns that were asked for."""
    cells: dict[str, Any] = field(default_factory=dict)
    cell_problem: Problem | None = None
    """What is wrong with the files of texts."""


@dataclass(frozen=True)
class StoredImage:
    """An image of a container."""

    row: int
    """Number of its row in the container, from 0. Rows that cannot be used have numbers too."""
    name: str
    """Its name, which stands once in the container: the name of the member of a tar, the number of the row in a table
    or the value of the source's `key`, or the path of the file in the folder."""
    image: bytes
    """The file as it is: of any format, and unchecked."""


@dataclass(frozen=True)
class ExistingRow:
    """A usable row of a container. Its image is not checked yet."""

    row: int
    name: str
    """`row` and `name` as in `StoredImage`."""
    url: str | None
    """None: the source has no URLs, or the row has none."""
    texts: tuple[str, ...]
    """At least one; "" if there is none. Each stands once."""
    values: dict[str, Any]
    """The values of the columns that the source's filter names, None if the row has none."""
    image: bytes | None
    """The file as it is; None if images were not asked for."""
    defect: str | None = None
    """What stands in place of a text, such as `an object`, and is left out; None if there is no such."""


@dataclass(frozen=True)
class RejectedRow:
    """A row that cannot be used."""

    row: int
    name: str
    reason: str
    detail: str


def columns_of(source: Source) -> tuple[str, ...]:
    """The columns of the images' texts, URLs and filter, each once."""
    filtered = [] if source.filter is None else RowFilter(source.filter).columns
    urls = [] if source.url is None else [source.url]
    return tuple(dict.fromkeys([*urls, *source.text_columns, *filtered]))


def rows_of(samples: Iterator[Sample], source: Source) -> Iterator[ExistingRow | RejectedRow]:
    """What is made of samples that have the cells of `columns_of(source)`."""
    decode = decoder(source.decode)
    filtered = () if source.filter is None else tuple(RowFilter(source.filter).columns)
    for sample in samples:
        row = sample.problem or sample.cell_problem or _row_of(sample, source, filtered, decode)
        if isinstance(row, Problem):
            yield RejectedRow(sample.row, clip(sample.name), row.reason, clip(row.detail))
        else:
            yield row


def _row_of(
    sample: Sample, source: Source, filtered: tuple[str, ...], decode: Callable[[str], str] | None
) -> ExistingRow | Problem:
    texts: dict[str, None] = {}
    defect = None
    for column in source.text_columns:
        own, own_defect = texts_of(sample.cells.get(column), decode)
        if own_defect == GARBLED:
            return Problem(TEXT_GARBLED, f"{column}: {own[0] if own else ''}")
        texts.update(dict.fromkeys(own))
        defect = own_defect or defect
    if (longest := max(map(len, texts), default=0)) > MAX_TEXT_BYTES:
        return Problem(TEXT_TOO_LONG, f"{longest:,} characters")
    url = None
    if source.url is not None:
        cell = sample.cells.get(source.url)
        if (kind := kind_of(cell)) is not None:
            return Problem(f"the URL is {kind}")
        if url := clean(cell):
            try:
                uid_of_listed_url(url)
            except ValueError as error:
                return Problem(str(error), url)
    values = {column: _value(sample.cells.get(column)) for column in filtered}
    return ExistingRow(sample.row, sample.name, url or None, tuple(texts) or ("",), values, sample.image, defect)


def _value(cell: Any) -> Any:
    """A cell as a filter takes it: None, a boolean, a number or a text, such as that of a date."""
    if cell is None or isinstance(cell, bool | int | float | str):
        return cell
    return clean(cell) or (None if isinstance(cell, list | dict) else str(cell))


def name_problem(name: str) -> Problem | None:
    """What is wrong with the name of a file that others may write to a disk or a table; None if nothing is."""
    if len(name) > MAX_NAME_CHARACTERS:
        return Problem(UNSAFE_NAME, f"the name has more than {MAX_NAME_CHARACTERS:,} characters")
    if SURROGATES.search(name):
        return Problem(UNSAFE_NAME, "the name is not in UTF-8")
    if name.startswith("/") or ".." in name.split("/") or any(not character.isprintable() for character in name):
        return Problem(UNSAFE_NAME, "the name is an absolute path, has `..` in it, or has control characters")
    return None
