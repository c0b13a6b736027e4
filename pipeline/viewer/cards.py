"""One sample as the page shows it: sub-captions marked, words that only one captioner uses underlined, scores."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from lotlip_data.manifests.formats.schema import FLAGS_SUFFIX, SUB_SUFFIX
from lotlip_data.manifests.settings.captioners import by_captioner
from lotlip_data.pipeline.dataset.scores import Scores
from lotlip_data.pipeline.viewer.paging import Position
from lotlip_data.pipeline.viewer.scoring import NO_SCORING, Scoring, Tint, score_sentence

DETAILS = ("uid", "url", "sha256", "key", "width", "height", "original_width", "original_height", "source")
TEXT_CHARACTERS = 20_000
"""Longest text shown; the rest is left out."""
NO_SEVERAL_TEXTS: Mapping[str, Sequence[str]] = {}
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class Word:
    """A piece of a text; `unique` marks a word that only this captioner uses."""

    text: str
    unique: bool = False


@dataclass(frozen=True)
class Span:
    """A sub-caption with its number, counted from 1; or the text between two sub-captions, without a number."""

    number: int | None
    words: list[Word]
    tint: Tint | None = None
    """By the score of the sub-caption."""
    title: str = ""
    """All of its scores; empty in a dataset without scores."""
    css: str = ""
    """Of the tint, or of a sub-caption without one among those that have one; empty where scores tint nothing."""


@dataclass(frozen=True)
class LongText:
    """A captioner's text; without spans if the captioner has no text for this image."""

    captioner: str
    maker: str | None
    """The captioner that makes this text and others for each image; None for a captioner that makes one text."""
    spans: list[Span]
    flags: list[str]
    words: int
    sub_captions: int
    scores: Scores = field(default_factory=dict)
    piece_scores: list[Scores] = field(default_factory=list)
    """Of each sub-caption; empty in a dataset without scores."""


@dataclass(frozen=True)
class Card:
    """One sample. Its texts come from the web; the template escapes them and spells out invisible characters."""

    position: Position
    raws: list[tuple[str, str]]
    """Source and raw text of each source."""
    longs: list[LongText]
    """Those of one captioner are together."""
    details: dict[str, Any]
    raw_scores: list[Scores] = field(default_factory=list)
    """Of each raw text; empty in a dataset without scores."""
    image_scores: Scores = field(default_factory=dict)

    @property
    def groups(self) -> list[tuple[str | None, list[LongText]]]:
        """The long texts with their makers."""
        return [(maker, list(longs)) for maker, longs in groupby(self.longs, lambda long: long.maker)]

    @property
    def score_rows(self) -> list[tuple[str, Scores]]:
        """The scores of the image, of each raw text and of each long text, with their names."""
        rows = [("image", self.image_scores)] if self.image_scores else []
        rows += [(f"raw text ({source})", s) for (source, _), s in zip(self.raws, self.raw_scores, strict=False)]
        return rows + [(long.captioner, long.scores) for long in self.longs if long.scores and long.spans]

    @property
    def link(self) -> str | None:
        """The image's own URL if it is an http or https URL, otherwise None."""
        return web_link(str(self.details["url"] or ""))


def web_link(url: str) -> str | None:
    """Return a URL that a page may link to: an http or https URL; None for any other text."""
    return url if url.lower().startswith(("http://", "https://")) else None


def make_card(
    position: Position,
    row: Mapping[str, Any],
    captioners: Sequence[str],
    texts_of: Mapping[str, Sequence[str]] = NO_SEVERAL_TEXTS,
    scoring: Scoring = NO_SCORING,
    score: str = "",
) -> Card:
    """Return the card of one row of the dataset's Parquet files.

    Args:
        position: Where the row is.
        row: The row.
        captioners: The names of the long texts to show.
        texts_of: By captioner that makes several texts for each image, their names.
        scoring: The scores that the dataset has.
        score: The score that tints the sub-captions, if it can (`Scoring.tinting`).
    """
    texts = {name: row[name] for name in captioners if row[name] is not None}
    unique = unique_words(texts)
    longs = []
    for maker, names in by_captioner(captioners, texts_of):
        for name in names:
            text, sub_captions = row[name] or "", row[name + SUB_SUFFIX] or []
            spans = split_spans(text, sub_captions, unique.get(name, set())) if name in texts else []
            scores, of_pieces = scoring.of_text(row, name), scoring.of_pieces(row, name)
            if scores:
                spans = [_scored(span, of_pieces, scoring, scoring.tinting(score)) for span in spans]
            flags = (row[name + FLAGS_SUFFIX] or "").split()
            longs.append(LongText(name, maker, spans, flags, len(text.split()), len(sub_captions), scores, of_pieces))
    pairs = zip(row["sources"] or [row["source"]], row["raws"] or [row["raw"]], strict=False)
    raws = [(source or "", (text or "")[:TEXT_CHARACTERS]) for source, text in pairs]
    details = {name: row[name] for name in DETAILS}
    return Card(position, raws, longs, details, scoring.of_raws(row), scoring.of_image(row))


def _scored(span: Span, of_pieces: Sequence[Scores], scoring: Scoring, name: str) -> Span:
    """A sub-caption with its tint and its scores."""
    if span.number is None or span.number > len(of_pieces):
        return span
    scores = of_pieces[span.number - 1]
    tint = scoring.tint(name, scores.get(name)) if name else None
    css = tint.css if tint else "unscored" if name else ""
    return replace(span, tint=tint, title=score_sentence(scores), css=css)


def select_text(row: Mapping[str, Any], captioners: Iterable[str], parameters: Mapping[str, str]) -> str | None:
    """Return the text of a sample that a URL's parameters select, or None if they select none.

    Args:
        row: A row of the dataset's Parquet files.
        captioners: The dataset's captioners.
        parameters: `text` is the text itself. Otherwise `of` is `raw` or a captioner, and `sub` the number of one of
            its sub-captions, counted from 1.
    """
    if text := parameters.get("text", "").strip():
        return text
    column, sub = parameters.get("of", ""), parameters.get("sub", "")
    if column != "raw" and column not in captioners:
        return None
    if not sub:
        return row[column] or None
    sub_captions = row.get(column + SUB_SUFFIX) or []
    number = int(sub) if sub.isascii() and sub.isdigit() and len(sub) < 10 else 0
    return sub_captions[number - 1] if 1 <= number <= len(sub_captions) else None


def unique_words(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """Return, by captioner, the casefolded words that no other captioner uses; none if there is only one text."""
    words = {name: {word.casefold() for word in _WORD.findall(text)} for name, text in texts.items()}
    if len(words) < 2:
        return {name: set() for name in words}
    return {
        name: own.difference(*(others for other, others in words.items() if other != name))
        for name, own in words.items()
    }


def split_spans(text: str, sub_captions: Sequence[str], unique: set[str]) -> list[Span]:
    """Return the text in spans, whose words together are the text, truncated to TEXT_CHARACTERS.

    Args:
        text: A long text.
        sub_captions: Its sub-captions, in order.
        unique: The words to mark, casefolded.
    """
    shown = text[:TEXT_CHARACTERS] + "…" * (len(text) > TEXT_CHARACTERS)
    spans, end = [], 0
    for number, sub_caption in enumerate(sub_captions, 1):
        start = shown.find(sub_caption, end)
        if start < 0:  # in the truncated part
            break
        if start > end:
            spans.append(Span(None, _split_words(shown[end:start], unique)))
        end = start + len(sub_caption)
        spans.append(Span(number, _split_words(shown[start:end], unique)))
    if end < len(shown):
        spans.append(Span(None, _split_words(shown[end:], unique)))
    return spans


def _split_words(text: str, unique: set[str]) -> list[Word]:
    """Return the text in few pieces: text between unique words stays in one piece."""
    pieces, end = [], 0
    for match in _WORD.finditer(text):
        if match[0].casefold() in unique:
            pieces += [Word(text[end : match.start()]), Word(match[0], unique=True)]
            end = match.end()
    pieces.append(Word(text[end:]))
    return [piece for piece in pieces if piece.text]
