"""Reads the rows of a table with image bytes: a binary column, or a struct with a field `bytes` as `datasets` has it.

One image is copied out of its batch at a time. Cells of texts are checked before they become Python values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.existing_images.rows import (
    DUPLICATE,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    NO_IMAGE,
    NO_KEY,
    TEXT_TOO_LONG,
    TOO_LARGE,
    Problem,
    Sample,
    columns_of,
    name_problem,
)
from lotlip_data.pipeline.existing_images.table_files import LeftOut, open_table
from lotlip_data.pipeline.url_lists.cells import clean, is_text_type, is_value_type, plain, sizes, to_list
from lotlip_data.pipeline.url_lists.rows import ListError, positions

_BYTES = "bytes"
_STEP = 256
"""Rows whose cells are Python values at once."""
_HINT = (
    ". Name other columns in `image`, `text`, `url`, `key` or `filter` of this source. If it has no texts, set "
    "`text: null`"
)


@dataclass(frozen=True)
class TableColumns:
    """The columns that are read of a table."""

    image: str | None
    """None: images are not read."""
    key: str | None
    others: tuple[str, ...]
    """Columns of texts, of the URL and of the filter."""

    @property
    def names(self) -> list[str]:
        """All columns, each once."""
        return list(dict.fromkeys(name for name in (self.image, self.key, *self.others) if name is not None))


def check_schema(schema: pa.Schema, url: str, source: Source, image: str) -> None:
    """Raise ListError if a table lacks a column that the source names, or has it with a type that cannot be used.

    Args:
        schema: The schema of the table.
        url: The table, for messages.
        source: The source.
        image: Its column of images.
    """
    positions(TableColumns(image, source.key, columns_of(source)).names, schema.names, url, _HINT)
    if (fault := _fault_of_image_type(schema.field(image).type)) is not None:
        raise ListError(f"{url}: the column {image!r} {fault}")
    for name in (source.key, source.url):
        if name is not None and not is_value_type(schema.field(name).type):
            raise ListError(f"{url}: the column {name!r} is {schema.field(name).type}, not a text; choose another")
    for name in source.text_columns:
        if not is_text_type(schema.field(name).type):
            kind = schema.field(name).type
            raise ListError(f"{url}: the column {name!r} is {kind}, not a text or a list of texts; choose another")


def _fault_of_image_type(kind: pa.DataType) -> str | None:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        index = kind.get_field_index(_BYTES)
        return _fault_of_image_type(kind.field(index).type) if index >= 0 else f"is {kind}, without a field `bytes`"
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    if any(check(kind) for check in checks):
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return (
            "holds texts, not the bytes of images. If they are URLs, the table is a list: set `format: parquet` and "
            "name the column in `url`"
        )
    return f"is {kind}, not the bytes of an image; name another column in `image`"


def table_samples(
    container: Container, columns: TableColumns, remedy: str, error_type: type[UserError]
) -> Iterator[Sample]:
    """The rows of a container of a table.

    Args:
        container: The container.
        columns: The columns to read.
        remedy: What to do if rows are missing; the end of the error message.
        error_type: The type of the error for missing rows.
    """
    row = 0
    keys: set[str] = set()
    with open_table(container.url) as table:
        positions(columns.names, table.schema.names, container.url, _HINT)
        for batch in table.batches(columns.names, container.first, container.rows):
            if isinstance(batch, LeftOut):
                problem = Problem(TOO_LARGE, batch.reason)
                numbers = range(row, row + batch.rows)
                yield from (Sample(number, str(container.first + number), None, problem) for number in numbers)
                row += batch.rows
                continue
            for start in range(0, batch.num_rows, _STEP):
                part = batch.slice(start, _STEP)
                yield from _part_samples(part, row, container.first, columns, keys)
                row += part.num_rows
    if container.rows is not None and row < container.rows:
        raise error_type(f"{container}: the table has only {row:,} of these rows. {remedy}".rstrip())


def _part_samples(
    part: pa.RecordBatch, row: int, first: int, columns: TableColumns, keys: set[str]
) -> Iterator[Sample]:
    """The samples of a few rows, of which the first has the number `row`; `keys` are those of the rows before."""
    too_long = _too_long(part, columns.others)
    cells = {name: _to_list(part.column(name), too_long) for name in columns.others}
    names = None if columns.key is None else to_list(plain(part.column(columns.key)))
    images = None if columns.image is None else part.column(columns.image)
    for index in range(part.num_rows):
        name = str(first + row + index) if names is None else clean(names[index]) or ""
        problem = None if names is None else _key_problem(name, keys)
        if problem is None and names is not None:
            keys.add(name)
        image = None if images is None or problem is not None else _image_of(images[index])
        if isinstance(image, Problem):
            problem, image = image, None
        own = {column: values[index] for column, values in cells.items()}
        fault = Problem(TEXT_TOO_LONG, f"more than {MAX_TEXT_BYTES:,} bytes") if too_long[index] else None
        yield Sample(row + index, name, image, problem, own, fault)


def _too_long(part: pa.RecordBatch, columns: Sequence[str]) -> np.ndarray:
    """Whether a row has a cell in these columns that is longer than a text can be; one bool per row."""
    result = np.zeros(part.num_rows, bool)
    for name in columns:
        result |= sizes(part.column(name)) > MAX_TEXT_BYTES
    return result


def _to_list(values: pa.Array, left_out: np.ndarray) -> list[Any]:
    """The cells as Python values; None for those that are left out."""
    values = plain(values)
    if left_out.any():
        values = pc.if_else(pa.array(left_out), pa.scalar(None, values.type), values)
    return to_list(values)


def _key_problem(name: str, keys: set[str]) -> Problem | None:
    if not name:
        return Problem(NO_KEY, "the cell of the column `key` is empty")
    return Problem(DUPLICATE, "an earlier row has this key") if name in keys else name_problem(name)


def _image_of(cell: pa.Scalar) -> bytes | Problem:
    """The bytes in a cell of images."""
    path = None
    if isinstance(cell, pa.ExtensionScalar | pa.DictionaryScalar):
        cell = cell.value
    if isinstance(cell, pa.StructScalar) and cell.is_valid:
        path = cell["path"].as_py() if "path" in cell.keys() else None  # noqa: SIM118 - a scalar is no dict
        cell = cell[_BYTES]
    buffer = cell.as_buffer() if cell is not None and cell.is_valid else None
    if buffer is None:
        only_path = f"the table has only its path, {path}: write the table again with the bytes of the images"
        return Problem(NO_IMAGE, "the cell is empty" if path is None else only_path)
    if buffer.size > MAX_IMAGE_BYTES:
        return Problem(TOO_LARGE, f"{buffer.size:,} bytes")
    return buffer.to_pybytes()
