"""The forms in which a BERT-like text tower reads a long text, as one string with the tokenizer's [SEP] between the
sub-captions.

`authors` is that of the authors' code: it splits the text at every ". " and nowhere else, so the full stops between
sub-captions disappear and the last one stays. `punkt` splits into sentences and keeps their full stops.
"""

import html
import re
from typing import Literal, get_args

import ftfy

from lotlip_data.manifests.subcaptions import split

TextForm = Literal["authors", "punkt"]

_WHITESPACE = re.compile(r"\s+")


def clean_text(text: str) -> str:
    """Repair encodings, unescape HTML entities (twice: web texts are often escaped twice) and collapse whitespace."""
    return _WHITESPACE.sub(" ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


def prepare(text: str, form: str, separator: str) -> str:
    """The text in a form, for a tokenizer that makes its separating token of `separator`.

    `plain` is the form of all other text towers: the whole text, cleaned.

    Raises:
        ValueError: The form is unknown.
    """
    if form == "plain":
        return clean_text(text)
    if form == "authors":
        return authors_form(text, separator)
    if form == "punkt":
        return separator.join(split(clean_text(text), "punkt"))
    raise ValueError(f"text form {form!r} is not one of plain, {', '.join(get_args(TextForm))}")


def authors_form(text: str, separator: str) -> str:
    """The text in the form of the authors' code, which splits first and cleans afterwards.

    A "[SEP]" in the text becomes the special token.
    """
    return clean_text(separator.join(text.split(". ")))
