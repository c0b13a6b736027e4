"""Checks what YAML, JSON or a caller gives as settings, before any model interprets it.

Models trust their values to be plain: numbers that a computer holds, texts that UTF-8 holds, and no endless structure,
which YAML can write in a few lines.
"""

import math
from collections.abc import Mapping
from typing import Any

from lotlip_data.manifests.errors import UserError

MAX_DEPTH = 30
"""Deepest nesting of lists and mappings."""
MAX_VALUES = 1_000_000
"""Largest number of values, with those that aliases repeat."""


def check_plain_values(content: Any, where: str = "") -> None:
    """Check every value in nested lists and mappings.

    Args:
        content: The settings.
        where: Start of the error message, such as the name of a file.

    Raises:
        UserError: Naming the setting and what is wrong with its value.
    """
    prefix = f"{where}: " if where else ""
    waiting: list[tuple[Any, str, int]] = [(content, "", 0)]
    count = 0
    while waiting:
        value, path, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise UserError(f"{prefix}`{path[:80]}…`: nested more than {MAX_DEPTH} deep")
        if count > MAX_VALUES:
            raise UserError(f"{prefix}more than {MAX_VALUES:,} values; do aliases (`*name`) repeat each other?")
        if problem := _problem_of(value):
            raise UserError(f"{prefix}`{path}`: {problem}" if path else f"{prefix}{problem}")
        inner = (
            value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
        )
        for key, part in inner:
            if problem := _problem_of(key):
                raise UserError(f"{prefix}the name of a setting, {str(key)[:80]!r}: {problem}")
            waiting.append((part, f"{path}.{key}" if path else str(key), depth + 1))


def _problem_of(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "is too large for a number of 64 bits"
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return f"{value[:80]!r} has half of a surrogate pair, which is no character"
    return None
