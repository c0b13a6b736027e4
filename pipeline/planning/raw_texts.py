"""Signs by which `plan` recognises raw texts that are encoded, or that stand for a missing text."""

import re
from collections import Counter
from collections.abc import Iterable

from lotlip_data.manifests.settings.source import Source

_URL, _HTML, _LIST, _MISSING = "url", "html", "list", "missing"
_SIGNS = {
    # Encoded texts have no spaces. A sole plus sign or percent sign is common in others.
    _URL: re.compile(r"[!-~]*(?:%(?:20|2[1-9A-Fa-f]|3[A-Fa-f]|[C-Fc-f][0-9A-Fa-f]%)|\w\+\w)[!-~]*"),
    _HTML: re.compile(r"(?s).*&(?:amp|quot|apos|lt|gt|nbsp|#\d{1,6}|#[xX][0-9A-Fa-f]{1,5});.*"),
    _LIST: re.compile(r"(?s)\[\s*([\"']).*\1\s*\]|\{\s*([\"']).*\}"),
    _MISSING: re.compile(r"(?i)nan|none|null|n/a|<na>|\\N|undefined"),
}
_TOLERATED_SHARE = 0.01


class TextSigns:
    """Counts texts by sign."""

    def __init__(self) -> None:
        self.texts = 0
        """Texts that are not blank."""
        self.counts: Counter[str] = Counter()

    def add(self, texts: Iterable[str]) -> None:
        """Count texts."""
        for text in texts:
            if text:
                self.texts += 1
                self.counts.update(sign for sign, pattern in _SIGNS.items() if pattern.fullmatch(text[:2000]))


def text_hints(signs: dict[str, int], texts: int, source: Source) -> list[str]:
    """Sentences about the signs that more than one text in a hundred has.

    Args:
        signs: Number of texts by sign.
        texts: Number of all texts.
        source: The source that they are of.
    """
    if source.decode == "url":
        signs = signs | {_URL: 0}
    if source.decode == "html":
        signs = signs | {_HTML: 0}
    sentences = {
        _URL: "URL-encoded, as in `red%20boat` or `red+boat`; set `decode: url` to decode them",
        _HTML: "HTML, as in `Tom &amp; Jerry`; set `decode: html` to decode them",
        _LIST: "written lists or objects, as in `['a', 'b']`, and are kept as they are; in JSON lines and Parquet, "
        "lists of texts are read as such",
        _MISSING: "words for a missing text, such as `nan` or `None`, and are kept as they are; leave them out with "
        "`filter`",
    }
    shares = {sign: signs.get(sign, 0) / max(texts, 1) for sign in sentences}
    return [
        f"{shares[sign]:.1%} of the texts read look like {sentence}"
        for sign, sentence in sentences.items()
        if shares[sign] > _TOLERATED_SHARE
    ]
