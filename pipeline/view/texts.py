"""Texts as the page shows them: sub-captions marked, words that only one captioner uses."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LONGEST = 20_000
"""Characters of a text that are shown."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class Word:
    """A piece of a text, and whether it is a word that only this captioner uses."""

    text: str
    alone: bool = False


@dataclass(frozen=True)
class Span:
    """A sub-caption by its number, counted from 1; or what stands between two, without a number."""

    number: int | None
    words: list[Word]


def alone(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """By captioner, the words that none of the others uses, letter case aside; none where there is but one text."""
    words = {name: {word.casefold() for word in _WORD.findall(text)} for name, text in texts.items()}
    if len(words) < 2:
        return {name: set() for name in words}
    return {
        name: found.difference(*(others for other, others in words.items() if other != name))
        for name, found in words.items()
    }


def marked(text: str, sub_captions: Sequence[str], words: set[str]) -> list[Span]:
    """The text in spans that together are it, cut at LONGEST characters; `words` are those to mark, casefolded."""
    shown = text[:LONGEST] + "…" * (len(text) > LONGEST)
    spans, at = [], 0
    for number, piece in enumerate(sub_captions, 1):
        begin = shown.find(piece, at)
        if begin < 0:  # beyond the cut
            break
        if begin > at:
            spans.append(Span(None, _words(shown[at:begin], words)))
        at = begin + len(piece)
        spans.append(Span(number, _words(shown[begin:at], words)))
    if at < len(shown):
        spans.append(Span(None, _words(shown[at:], words)))
    return spans


def _words(text: str, words: set[str]) -> list[Word]:
    """The text in pieces, few of them: what is not marked stays together."""
    pieces, at = [], 0
    for found in _WORD.finditer(text):
        if found[0].casefold() in words:
            pieces += [Word(text[at : found.start()]), Word(found[0], alone=True)]
            at = found.end()
    pieces.append(Word(text[at:]))
    return [piece for piece in pieces if piece.text]
