"""Writes and reads the JSON objects and Parquet files that one command hands to another.

What is written here contains its own sha256 (`digests.py`), and the pages of Parquet files have checksums. What is read
is compared with them, and with the digest in a marker if the caller has one.

If a file is damaged, the error is of the caller's `error_type`, names it and ends with the caller's `remedy`: how to
get it back. Errors of the storage, such as a lost connection, are raised as OSError.
"""

import functools
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from lotlip_data.manifests import digests, storage
from lotlip_data.manifests.digests import Digest, DigestMismatch
from lotlip_data.manifests.errors import UserError

Content = TypeVar("Content")

JsonObject = dict[str, Any]
"""The schema of a JSON object whose fields are not checked."""


def encode_json(content: Any, indent: int | None = None) -> bytes:
    """A JSON object with its sha256 as its last field, in UTF-8."""
    return digests.embed_in_json(json.dumps(content, indent=indent).encode())


@overload
def read_json(url: str, remedy: str) -> JsonObject: ...


@overload
def read_json(url: str, remedy: str, schema: type[Content], error_type: type[UserError] = UserError) -> Content: ...


def read_json(url: str, remedy: str, schema: Any = JsonObject, error_type: type[UserError] = UserError) -> Any:
    """The JSON object at `url`, checked as `parse_json` does. Raises FileNotFoundError if there is none."""
    return parse_json(storage.read_bytes(url), url, remedy, schema, error_type)


def parse_json(
    text: bytes, url: str, remedy: str, schema: type[Content], error_type: type[UserError] = UserError
) -> Content:
    """Parse a JSON object.

    Args:
        text: The JSON.
        url: Where it comes from; the beginning of an error message.
        remedy: How to get the object back; the end of an error message.
        schema: What the object is validated as: a TypedDict, a dataclass, a pydantic model or a `dict` type.
        error_type: The type of the error.

    Raises:
        UserError: `error_type`, if the text is not a JSON object, does not match its sha256, or lacks a field.
    """
    try:
        has_digest = digests.check_json(text)
        content = json.loads(text)
    except DigestMismatch as error:
        raise error_type(_message(url, str(error), remedy)) from None
    except (ValueError, RecursionError) as error:
        raise error_type(_message(url, f"not JSON ({error})", remedy)) from None
    if not isinstance(content, dict):
        raise error_type(_message(url, "not a JSON object", remedy))
    if not has_digest and any(map(digests.is_nearly_json_key, content)):
        raise error_type(_message(url, f"its field {digests.JSON_KEY!r} is damaged", remedy))
    content.pop(digests.JSON_KEY, None)
    return validate(content, url, remedy, schema, error_type)


def validate(
    content: JsonObject, url: str, remedy: str, schema: type[Content], error_type: type[UserError] = UserError
) -> Content:
    """`content` as an instance of `schema`. Raises `error_type` if it does not fit. The arguments of `parse_json`."""
    try:
        adapter = _adapter(schema)  # type: ignore[arg-type]  # for mypy, a type is not hashable
        validated: Content = adapter.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise error_type(_message(url, _describe(error), remedy)) from None
    return validated


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _message(url: str, problem: str, remedy: str) -> str:
    return f"{url}: {problem}. {remedy}" if remedy else f"{url}: {problem}"


def _describe(error: ValidationError) -> str:
    """The first problem of a validation."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"the field `{field}` is missing"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"the field `{field}` is unknown"
    return f"the field `{field}` is wrong: {problem['msg'].removeprefix('Input ')}"


def encode_parquet(table: pa.Table, compression: str = "zstd") -> bytes:
    """A Parquet file with checksums of its pages and its sha256."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=compression, write_page_checksum=True)
    return digests.embed_in_parquet(buffer.getvalue())


def parquet_writer(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Writes a local Parquet file row group by row group, with checksums of its pages.

    The file has no sha256 of its own: that belongs in the marker that names the file.
    """
    return pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)


def read_parquet(
    url: str,
    remedy: str,
    columns: Sequence[str] | None = None,
    error_type: type[UserError] = UserError,
    recorded: Digest | None = None,
) -> pa.Table:
    """Read a Parquet file into memory.

    Args:
        url: The file, as a path or URL.
        remedy: How to get the file back; the end of an error message.
        columns: The columns to read. Default: all.
        error_type: The type of the error.
        recorded: The digest in the marker that names the file; None if the marker has none.

    Raises:
        UserError: `error_type`, if the file is damaged, lacks a column, or is missing although another object of the
            run refers to it.
    """
    return parse_parquet(_read_bytes(url, remedy, error_type), url, remedy, columns, error_type, recorded)


def _read_bytes(url: str, remedy: str, error_type: type[UserError]) -> bytes:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        raise error_type(_message(url, "is missing, but another file refers to it", remedy)) from None


def parse_parquet(
    content: bytes,
    url: str,
    remedy: str,
    columns: Sequence[str] | None = None,
    error_type: type[UserError] = UserError,
    recorded: Digest | None = None,
) -> pa.Table:
    """The table in the bytes of a Parquet file. The arguments and errors of `read_parquet`."""
    with _damage_explained(url, remedy, error_type):
        _check_parquet(content, recorded)
        source = pa.BufferReader(content)
        return pq.read_table(source, columns=_as_list(columns), page_checksum_verification=True)


def _check_parquet(content: bytes, recorded: Digest | None) -> None:
    if recorded is None:
        digests.check_parquet(content)
    else:
        recorded.check(digests.digest_of_bytes(content))


def iter_parquet(
    url: str,
    remedy: str,
    columns: Sequence[str] | None = None,
    rows: int = 1000,
    error_type: type[UserError] = UserError,
    recorded: Digest | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream a Parquet file in batches of at most `rows` rows. The arguments and errors of `read_parquet`.

    Memory holds the file as it is stored, and one row group of the selected columns.
    """
    content = _read_bytes(url, remedy, error_type)
    with _damage_explained(url, remedy, error_type):
        _check_parquet(content, recorded)
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        yield from file.iter_batches(rows, columns=_as_list(columns))


def _as_list(columns: Sequence[str] | None) -> list[str] | None:
    """The columns as pyarrow takes them: it refuses a tuple."""
    return None if columns is None else list(columns)


@contextmanager
def open_parquet(url: str, remedy: str, error_type: type[UserError] = UserError) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file to read some of its row groups. The arguments and errors of `read_parquet`.

    Of a part of the file only the checksums of its pages are compared. Errors of the storage and of pyarrow, and
    ValueError and KeyError of the block, count as damage.
    """
    with _damage_explained(url, remedy, error_type), storage.open_read(url) as stream:
        yield pq.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True)


@contextmanager
def _damage_explained(url: str, remedy: str, error_type: type[UserError]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise error_type(_message(url, "is missing, but another file refers to it", remedy)) from None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise error_type(_message(url, f"cannot be read ({reason})", remedy)) from error


def digest(*parts: object) -> str:
    """The first 12 hexadecimal digits of the sha256 of `parts` as JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
