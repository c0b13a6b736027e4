"""Texts of the web as pages show them: nothing in them is invisible, or turns the direction of writing unseen."""

import unicodedata
from typing import Any

from markupsafe import Markup, escape

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of controls, format characters, halves of surrogates, and separators of lines."""
_PLAIN = frozenset("\t\n\r")
_IGNORED = frozenset(
    chr(code)
    for first, last in (
        (0x034F, 0x034F),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x2065, 0x2065),
        (0x3164, 0x3164),
        (0xFE00, 0xFE0D),  # not U+FE0E and U+FE0F, which choose how the emoji before them looks
        (0xFFA0, 0xFFA0),
        (0xFFF0, 0xFFF8),
        (0xE0000, 0xE0FFF),
    )
    for code in range(first, last + 1)
)
"""Those of other categories that Unicode lets a font draw as nothing (Default_Ignorable_Code_Point)."""


def escape_invisible(text: str) -> str:
    """`text` with every invisible character in words: ‹U+202E›. Line breaks and tabs stay."""
    return text.translate({ord(one): f"‹U+{ord(one):04X}›" for one in set(text) if _invisible(one)})


def template_value(value: Any) -> Any:
    """What a template shows of a value, for jinja2's `finalize`: texts are made visible, markup is left as it is."""
    return escape_invisible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def typed(value: Any) -> Markup:
    """What a form's field holds: as it was typed, since the form sends it again."""
    return escape(value)


def _invisible(one: str) -> bool:
    return one not in _PLAIN and (unicodedata.category(one) in _HIDDEN or one in _IGNORED)
