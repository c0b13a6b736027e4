"""Readers of the JSON and Parquet objects that other commands wrote, and digests of what they contain.

An object that is missing or damaged raises a UserError with its URL and a remedy: what the user does to get it again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError

_TYPE_NAMES = {int: "whole number", str: "text", dict: "object", list: "list"}


def read_json(url: str, remedy: str, fields: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Read the JSON object at `url`, as `parse_json` does. Raises FileNotFoundError if there is none."""
    return parse_json(storage.read_bytes(url), url, remedy, fields)


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
        url: Where it was read from, for the message.
        remedy: What the user does about a damaged object.
        fields: Fields that the object must have, with their types; it may have others.
        error_type: Class of the error.

    Raises:
        UserError: Of class `error_type`, if the text is no JSON object with these fields.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise error_type(f"{url}: not JSON ({error}). {remedy}") from None
    if not isinstance(content, dict):
        raise error_type(f"{url}: not an object of JSON. {remedy}")
    check_fields(content, url, remedy, fields or {}, error_type)
    return content


def check_fields(
    content: Mapping[str, Any],
    url: str,
    remedy: str,
    fields: Mapping[str, type],
    error_type: type[UserError] = UserError,
) -> None:
    """Raises `error_type` unless the object has every one of `fields`, each of its type; see `parse_json`."""
    for name, kind in fields.items():
        if not isinstance(content.get(name), kind):
            raise error_type(f"{url}: its {name!r} is missing or no {_TYPE_NAMES[kind]}. {remedy}")


def read_parquet(url: str, remedy: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet object that another object names.

    Args:
        url: Where it is.
        remedy: What the user does about a missing or damaged object.
        columns: Names of the columns to read. Default: all.

    Returns:
        All rows, in memory.

    Raises:
        UserError: If the object is missing or damaged. Other errors of the storage are raised as they are.
    """
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        raise UserError(f"{url}: is missing, although another file refers to it. {remedy}") from None
    return parse_parquet(content, url, remedy, columns)


def parse_parquet(content: bytes, url: str, remedy: str, columns: Sequence[str] | None = None) -> pa.Table:
    """As `read_parquet`, for bytes that were read already."""
    try:
        return pq.read_table(pa.BufferReader(content), columns=columns)
    except (OSError, ValueError) as error:  # pyarrow's own
        reason = " ".join(str(error).split())
        raise UserError(f"{url}: cannot be read ({reason}). {remedy}") from error


def digest(*parts: object) -> str:
    """The first 12 hexadecimal digits of the sha256 of `parts` as JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
