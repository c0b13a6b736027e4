"""A sample as the page shows it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lotlip_data.manifests.schema import FLAGS_SUFFIX, SUB_SUFFIX
from lotlip_data.pipeline.view.scan import Place
from lotlip_data.pipeline.view.texts import LONGEST, Span, alone, marked

DETAILS = ("uid", "url", "sha256", "key", "width", "height", "original_width", "original_height", "source")


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
