"""Text from the web as pages show it: invisible characters and changes of writing direction are spelled out."""

import unicodedata
from typing import Any

from markupsafe import Markup, escape

_HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: controls, format characters, surrogates, line separators and paragraph separators."""
_PLAIN_WHITESPACE = frozenset("\t\n\r")
_DEFAULT_IGNORABLE = frozenset(
    chr(code)
    for first, last in (
        (0x034F, 0x034F),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x2065, 0x2065),
        (0x3164, 0x3164),
        (0xFE00, 0xFE0D),  # without U+FE0E and U+FE0F, which select the style of the emoji before them
        (0xFFA0, 0xFFA0),
        (0xFFF0, 0xFFF8),
        (0xE0000, 0xE0FFF),
    )
    for code in range(first, last + 1)
)
"""Characters of other categories that a font may draw as nothing (Unicode's Default_Ignorable_Code_Point)."""


def escape_invisible(text: str) -> str:
    """Return `text` with each invisible character spelled out, as in ‹U+202E›. Tabs and line breaks stay."""
    hidden = {character for character in text if _is_invisible(character)}
    return text.translate({ord(character): f"‹U+{ord(character):04X}›" for character in hidden})


def template_value(value: Any) -> Any:
    """Return what a template shows of a value (jinja2's `finalize`): text with `escape_invisible`, markup unchanged."""
    return escape_invisible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def form_value(value: Any) -> Markup:
    """Return the escaped value of a form field; its invisible characters stay, because the form submits them again."""
    return escape(value)


def _is_invisible(character: str) -> bool:
    if character in _PLAIN_WHITESPACE:
        return False
    return unicodedata.category(character) in _HIDDEN_CATEGORIES or character in _DEFAULT_IGNORABLE
