"""A sample as the page shows it.

Texts as the page shows them: sub-captions marked, words that only one captioner uses.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lotlip_data.manifests.schema import FLAGS_SUFFIX, SUB_SUFFIX
from lotlip_data.pipeline.viewer.paging import Place

DETAILS = ("uid", "url", "sha256", "key", "width", "height", "original_width", "original_height", "source")


def alone(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """By captioner, the words that none of the others uses, letter case aside; none where there is but one text."""
    words = {name: {word.casefold() for word in _WORD.findall(text)} for name, text in texts.items()}
    if len(words) < 2:
        return {name: set() for name in words}
    return {
        name: found.difference(*(others for other, others in words.items() if other != name))
        for name, found in words.items()
    }


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


@dataclass(frozen=True)
class LongText:
    """A captioner's text; without spans where it has none."""

    captioner: str
    spans: list[Span]
    flags: list[str]
    words: int
    sub_captions: int


@dataclass(frozen=True)
class Card:
    """One sample. Its texts are those of the web: escaped by the template, and made visible."""

    place: Place
    raws: list[tuple[str, str]]
    """Source and raw text."""
    longs: list[LongText]
    details: dict[str, Any]

    @property
    def link(self) -> str | None:
        """The image's own URL where a browser may follow it."""
        url = str(self.details["url"] or "")
        return url if url.lower().startswith(("http://", "https://")) else None


def card_of(place: Place, row: Mapping[str, Any], captioners: Iterable[str]) -> Card:
    """The card of a row of the dataset's Parquet."""
    texts = {name: row[name] for name in captioners if row[name] is not None}
    words = alone(texts)
    longs = []
    for name in captioners:
        text, pieces = row[name] or "", row[name + SUB_SUFFIX] or []
        spans = marked(text, pieces, words.get(name, set())) if name in texts else []
        flags = (row[name + FLAGS_SUFFIX] or "").split()
        longs.append(LongText(name, spans, flags, len(text.split()), len(pieces)))
    pairs = zip(row["sources"] or [row["source"]], row["raws"] or [row["raw"]], strict=False)
    raws = [(source or "", (text or "")[:LONGEST]) for source, text in pairs]
    return Card(place, raws, longs, {name: row[name] for name in DETAILS})


def text_of(row: Mapping[str, Any], captioners: Iterable[str], asked: Mapping[str, str]) -> str | None:
    """The text that a URL's parameters choose of a sample: `text` itself, or `of` and perhaps `sub`; None for none.

    of: `raw`, or a captioner; sub: the number of one of its sub-captions, from 1.
    """
    if own := asked.get("text", "").strip():
        return own
    of, sub = asked.get("of", ""), asked.get("sub", "")
    if of != "raw" and of not in captioners:
        return None
    if not sub:
        return row[of] or None
    pieces = row.get(of + SUB_SUFFIX) or []
    number = int(sub) if sub.isascii() and sub.isdigit() and len(sub) < 10 else 0
    return pieces[number - 1] if 1 <= number <= len(pieces) else None


LONGEST = 20_000
"""Characters of a text that are shown."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


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
