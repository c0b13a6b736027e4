"""Both modes split a long text into sentences and lose nothing but blanks."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotlip_data.manifests.subcaptions import split

SAMPLE = "Dr. Smith stands at 3.5 m today.  He waves.\nA dog barks!\n\n1. A cat"


def test_trained_punkt_keeps_abbreviations_numbers_and_full_stops() -> None:
    assert split(SAMPLE)[:3] == ["Dr. Smith stands at 3.5 m today.", "He waves.", "A dog barks!"]


def test_the_authors_rule_splits_at_every_full_stop_line_break_and_end_token() -> None:
    """Table 1's rule: `\\n|</s>|[.]`, blank pieces dropped."""
    assert split(SAMPLE + "</s>B", "authors") == [
        *("Dr", "Smith stands at 3", "5 m today", "He waves", "A dog barks!", "1", "A cat", "B"),
    ]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("1. A red circle. 2. A blue square.", ["1. A red circle.", "2. A blue square."]),
        ("It shows:\n1.\nA red circle\n2.\nA blue square", ["It shows:", "1. A red circle", "2. A blue square"]),
        ("(1) A circle.\n- \nA square.", ["(1) A circle.", "- A square."]),
        ("A circle. A square. 3.", ["A circle.", "A square. 3."]),  # the list was cut at the token limit
        ("The year is 2020. He is 5. A cat.", ["The year is 2020.", "He is 5.", "A cat."]),
        ("I. A circle. II. A square. viii. A star.", ["I. A circle.", "II. A square.", "viii. A star."]),
        ("7.", ["7."]),
    ],
)
def test_the_marker_of_a_list_is_no_sub_caption_of_its_own(text: str, pieces: list[str]) -> None:
    assert split(text) == pieces


@pytest.mark.parametrize("mode", ["punkt", "authors"])
def test_a_blank_text_has_no_sub_captions(mode: Any) -> None:
    assert split("", mode) == split(" \n\t\n", mode) == []


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match="unknown mode 'nltk'; one of punkt, authors"):
        split("A. B.", "nltk")  # type: ignore[arg-type]


@given(st.text(alphabet=st.sampled_from("aB .!?\n1\"'()\u2028é"), max_size=80))
def test_punkt_loses_nothing_but_blanks(text: str) -> None:
    pieces = split(text)
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", text)
    assert all(piece == piece.strip() != "" for piece in pieces)


@given(st.text(alphabet=st.sampled_from("aB .</s>\n1"), max_size=80))
def test_the_authors_rule_loses_nothing_but_blanks_full_stops_and_end_tokens(text: str) -> None:
    pieces = split(text, "authors")
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", re.sub(r"</s>|\.", " ", text))
    assert all(piece == piece.strip() != "" for piece in pieces)
