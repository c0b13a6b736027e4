"""An object of JSON that another command wrote, or an error that names it and says how to have it again."""

import json
from collections.abc import Mapping
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError


def read(url: str, remedy: str, fields: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The object at `url`, as `parse` has it. Raises FileNotFoundError where there is none."""
    return parse(storage.read_bytes(url), url, remedy, fields)


def parse(
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
