"""No character of a text from the web is invisible on a page, and visible characters are unchanged."""

import sys
import unicodedata

import pytest
from jinja2 import Environment

from lotlip_data.pipeline.reporting.escaping import escape_invisible, template_value

ALL_CHARACTERS = [chr(code) for code in range(sys.maxunicode + 1)]


@pytest.mark.parametrize("category", ["Cc", "Cf"])
def test_characters_of_invisible_categories_are_spelled_out(category: str) -> None:
    hidden = [char for char in ALL_CHARACTERS if unicodedata.category(char) == category and char not in "\t\n\r"]
    assert len(hidden) > 60
    assert [escape_invisible(char) for char in hidden] == [f"‹U+{ord(char):04X}›" for char in hidden]


@pytest.mark.parametrize(
    "char", ["\u034f", "\u115f", "\u3164", "\ufe00", "\U000e0002", "\U000e0100", "\u2028", "\ud800"]
)
def test_characters_that_fonts_draw_as_nothing_are_spelled_out(char: str) -> None:
    assert escape_invisible(f"a{char}b") == f"a‹U+{ord(char):04X}›b"


def test_visible_text_is_unchanged() -> None:
    visible = "a\tb\r\nc  é e\u0301 ‹U+202E› ü 漢字 \u0e01\u0e34 \u2764\ufe0f \u00a0 😀 <b>&amp;"
    assert escape_invisible(visible) == visible


def test_templates_spell_out_text_and_leave_markup_unchanged() -> None:
    page = Environment(autoescape=True, finalize=template_value).from_string("{{ text }} {{ text | safe }} {{ 7 }}")
    assert page.render(text="<\u00ad>") == "&lt;‹U+00AD›&gt; <\u00ad> 7"
