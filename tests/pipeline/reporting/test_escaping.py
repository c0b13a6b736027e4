"""Nothing in a text of the web is invisible on a page, and nothing that can be seen is changed."""

import sys
import unicodedata

import pytest
from jinja2 import Environment

from lotlip_data.pipeline.reporting.escaping import escape_invisible, template_value

EVERY = [chr(code) for code in range(sys.maxunicode + 1)]


@pytest.mark.parametrize("category", ["Cc", "Cf"])
def test_no_character_of_an_invisible_category_stays(category: str) -> None:
    hidden = [one for one in EVERY if unicodedata.category(one) == category and one not in "\t\n\r"]
    assert len(hidden) > 60
    assert [escape_invisible(one) for one in hidden] == [f"‹U+{ord(one):04X}›" for one in hidden]


@pytest.mark.parametrize(
    "one", ["\u034f", "\u115f", "\u3164", "\ufe00", "\U000e0002", "\U000e0100", "\u2028", "\ud800"]
)
def test_nor_does_another_that_fonts_draw_as_nothing(one: str) -> None:
    assert escape_invisible(f"a{one}b") == f"a‹U+{ord(one):04X}›b"


def test_what_can_be_seen_stays() -> None:
    kept = "a\tb\r\nc  é e\u0301 ‹U+202E› ü 漢字 \u0e01\u0e34 \u2764\ufe0f \u00a0 😀 <b>&amp;"
    assert escape_invisible(kept) == kept


def test_templates_show_texts_so_and_leave_markup() -> None:
    page = Environment(autoescape=True, finalize=template_value).from_string("{{ text }} {{ text | safe }} {{ 7 }}")
    assert page.render(text="<\u00ad>") == "&lt;‹U+00AD›&gt; <\u00ad> 7"
