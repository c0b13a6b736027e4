"""An object of JSON that another command wrote, or an error that names it and says how to have it again.

A Parquet object that another command wrote, or an error that names it and says how to have it again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError


def read_json(url: str, remedy: str, fields: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The object at `url`, as `parse` has it. Raises FileNotFoundError where there is none."""
    return parse_json(storage.read_bytes(url), url, remedy, fields)


def parse_json(
    text: str | bytes,
    url: str,
    remedy: str,
    fields: Mapping[str, type] | None = None,
    broken: type[UserError] = UserError,
) -> dict[str, Any]:
    """The object that `text` is, with at least these `fields`, each of its type.

    Raises `broken` with the `remedy` where it is something else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise broken(f"{url}: not JSON ({error}). {remedy}") from None
    if not isinstance(content, dict):
        raise broken(f"{url}: not an object of JSON. {remedy}")
    check(content, url, remedy, fields or {}, broken)
    return content


def check(content: dict[str, Any], url: str, remedy: str, fields: Mapping[str, type], broken: type[UserError]) -> None:
    for name, kind in fields.items():
        if not isinstance(content.get(name), kind):
            raise broken(f"{url}: its {name!r} is missing or no {_NAMES[kind]}. {remedy}")


_NAMES = {int: "whole number", str: "text", dict: "object", list: "list"}


def read_parquet(url: str, remedy: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows at `url`, all in memory: these `columns`, or all. Something else names it, so it has to be there.

    Raises UserError with the `remedy` where it is missing or damaged, and what else the storage raises.
    """
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        raise UserError(f"{url}: is missing, though something else names it. {remedy}") from None
    return parse_parquet(content, url, remedy, columns)


def parse_parquet(content: bytes, url: str, remedy: str, columns: Sequence[str] | None = None) -> pa.Table:
    """As `read`, of bytes at hand."""
    try:
        return pq.read_table(pa.BufferReader(content), columns=columns)
    except (OSError, ValueError) as error:  # pyarrow's own
        why = " ".join(str(error).split())
        raise UserError(f"{url}: cannot be read ({why}). {remedy}") from error


def digest(*parts: object) -> str:
    """12 hexadecimal digits of anything that JSON can tell."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
