"""Reads JSON objects and Parquet files that another command wrote.

If one is damaged, the error is of the caller's `error_type`, names it and ends with the caller's `remedy`: how to get
it back. Errors of the storage, such as a lost connection, are raised as OSError.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError

_TYPE_NAMES = {int: "a whole number", str: "a text", dict: "an object", list: "a list"}


def read_json(
    url: str, remedy: str, fields: Mapping[str, type] | None = None, error_type: type[UserError] = UserError
) -> dict[str, Any]:
    """The JSON object at `url`, checked as `parse_json` does. Raises FileNotFoundError if there is none."""
    return parse_json(storage.read_bytes(url), url, remedy, fields, error_type)


def parse_json(
    text: str | bytes,
    url: str,
    remedy: str,
    fields: Mapping[str, type] | None = None,
    error_type: type[UserError] = UserError,
) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: The JSON.
        url: Where it comes from; the beginning of an error message.
        remedy: How to get the object back; the end of an error message.
        fields: Fields that the object must have, with their types.
        error_type: The type of the error.

    Raises:
        UserError: `error_type`, if the text is not a JSON object or lacks a field.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise error_type(f"{url}: not JSON ({error}). {remedy}".rstrip()) from None
    if not isinstance(content, dict):
        raise error_type(f"{url}: not a JSON object. {remedy}".rstrip())
    check_fields(content, url, remedy, fields or {}, error_type)
    return content


def check_fields(
    content: Mapping[str, Any],
    url: str,
    remedy: str,
    fields: Mapping[str, type],
    error_type: type[UserError] = UserError,
) -> None:
    """Raise `error_type` unless an object has all `fields`, each of its type. The arguments of `parse_json`."""
    for name, kind in fields.items():
        if not isinstance(content.get(name), kind):
            raise error_type(f"{url}: the field {name!r} is missing or not {_TYPE_NAMES[kind]}. {remedy}".rstrip())


def read_parquet(
    url: str, remedy: str, columns: Sequence[str] | None = None, error_type: type[UserError] = UserError
) -> pa.Table:
    """Read a Parquet file into memory.

    Args:
        url: The file, as a path or URL.
        remedy: How to get the file back; the end of an error message.
        columns: The columns to read. Default: all.
        error_type: The type of the error.

    Raises:
        UserError: `error_type`, if the file is damaged, lacks a column, or is missing although another object of the
            run refers to it.
    """
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        raise error_type(f"{url}: is missing, but another file refers to it. {remedy}".rstrip()) from None
    return parse_parquet(content, url, remedy, columns, error_type)


def parse_parquet(
    content: bytes, url: str, remedy: str, columns: Sequence[str] | None = None, error_type: type[UserError] = UserError
) -> pa.Table:
    """The table in the bytes of a Parquet file. The arguments and errors of `read_parquet`."""
    with _damage_explained(url, remedy, error_type):
        return pq.read_table(pa.BufferReader(content), columns=_as_list(columns))


def iter_parquet(
    url: str,
    remedy: str,
    columns: Sequence[str] | None = None,
    rows: int = 1000,
    error_type: type[UserError] = UserError,
) -> Iterator[pa.RecordBatch]:
    """Stream a Parquet file in batches of at most `rows` rows. The arguments and errors of `read_parquet`.

    Memory holds one row group of the selected columns. An error of the storage while a batch is read counts as damage.
    """
    with open_parquet(url, remedy, error_type) as file:
        yield from file.iter_batches(rows, columns=_as_list(columns))


def _as_list(columns: Sequence[str] | None) -> list[str] | None:
    """The columns as pyarrow takes them: it refuses a tuple."""
    return None if columns is None else list(columns)


@contextmanager
def open_parquet(url: str, remedy: str, error_type: type[UserError] = UserError) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file to read some of its row groups. The arguments and errors of `read_parquet`.

    Errors of the storage and of pyarrow, and ValueError and KeyError of the block, count as damage.
    """
    with _damage_explained(url, remedy, error_type), storage.open_read(url) as stream:
        yield pq.ParquetFile(stream, pre_buffer=False)


@contextmanager
def _damage_explained(url: str, remedy: str, error_type: type[UserError]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise error_type(f"{url}: is missing, but another file refers to it. {remedy}".rstrip()) from None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise error_type(f"{url}: cannot be read ({reason}). {remedy}".rstrip()) from error


def digest(*parts: object) -> str:
    """The first 12 hexadecimal digits of the sha256 of `parts` as JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
