"""Finds the columns of a published list by their names: the URL, the raw text, and the long text of each captioner.

The lists of relabelled images by the authors of DreamLIP and LoTLIP name their columns in several ways. A column is
taken only if it is the only one of its kind. Of several, none is: the user names one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FIND = "find"
"""In place of a column's name: the column is found by its name."""

_SHORT_AND_FULL_NAMES = {
    "instructblip": ("IB", "instructblip"),
    "llava": ("LLA", "llava"),
    "sharegpt4v": ("SV", "sharegpt"),
}
FOUND_CAPTIONERS = tuple(_SHORT_AND_FULL_NAMES)
"""The captioners whose columns can be found: those of the LoTLIP paper."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LINK_NAMES = re.compile(r"(?:image|img)?(?:path|link|href|src|uri)|image")
_OTHER_LINKS = frozenset(
    ("page", "thumb", "thumbnail", "license", "licence", "profile", "author", "user", "owner", "home", "homepage")
)
"""Words in the names of columns with URLs of something else than the image."""
_ALT_NAMES = re.compile(r"alt(?:text|caption)?s?|ori?g(?:inal)?(?:text|caption)s?|webtexts?|webcaptions?")
_PLAIN_TEXT_NAMES = re.compile(r"texts?|captions?|title|description")
_TEXT_WORDS = re.compile(r"caption|text|recap|descri|long")
_OTHER_VALUES = re.compile(
    r"scores?|similarity|sim|length|len|tokens?|num|count|ids?|flags?|prob|time|prompt|sub", re.IGNORECASE
)
"""Words in the names of columns that say something about a text and do not hold it."""


class ColumnChoiceError(ValueError):
    """No column, or several, can be the one that is looked for. The message says which."""

    def __init__(self, finding: str, wanted: str) -> None:
        super().__init__(finding)
        self.wanted = wanted
        """`url`, `text` or the captioner."""


@dataclass(frozen=True)
class FoundColumns:
    """What the columns of one file hold."""

    url: str
    text: str | None
    """The column of the raw texts; None if there is none."""
    captions: Mapping[str, str]
    """Captioner → its column. Captioners without a column in the file are missing."""
    others: tuple[str, ...]
    """Columns that are not used."""

    def roles(self) -> dict[str, str]:
        """Column → what is taken from it, as text."""
        roles = {self.url: "URL"} | ({} if self.text is None else {self.text: "raw text"})
        return roles | {column: f"captions by {captioner}" for captioner, column in self.captions.items()}


def find_columns(
    names: Sequence[str], url: str, text: str | None, captions: Mapping[str, str], file_name: str = ""
) -> FoundColumns:
    """What the columns of a file hold. Each of the other arguments is a column's name, or `FIND`.

    A file without any column that names a captioner, whose own name names exactly one, has that captioner's texts in
    its only column of texts that is not raw.

    Args:
        names: The columns of the file.
        url: The column of the URLs.
        text: The column of the raw texts; None if there is none.
        captions: Captioner → the column of its texts. Captioners whose column the file lacks are left out.
        file_name: The file's own name, without its folder.

    Raises:
        ColumnChoiceError: No column can hold the URLs, or several can hold the same.
    """
    fixed = [name for name in (url, text, *captions.values()) if name not in (None, FIND)]
    free = [name for name in names if name not in fixed]
    url = _find_url(free, names) if url == FIND else url
    free = [name for name in free if name != url]
    found = {captioner: column for captioner, column in captions.items() if column != FIND and column in names}
    wanted = [captioner for captioner, column in captions.items() if column == FIND]
    by_name = {captioner: column for captioner in wanted if (column := _find_captions(free, captioner))}
    raw = [name for name in free if not captioners_in(name) and not _is_about_a_text(name)]
    if wanted and not any(map(captioners_in, free)) and len(owners := captioners_in(file_name)) == 1:
        by_name = _only_texts(raw, owners[0]) if owners[0] in wanted else {}
    raw = [name for name in raw if name not in by_name.values()]
    text = _find_text(raw) if text == FIND else text
    by_captioner = found | by_name
    taken = {url, text, *by_captioner.values()}
    ordered = {captioner: by_captioner[captioner] for captioner in captions if captioner in by_captioner}
    return FoundColumns(url, text, ordered, tuple(name for name in names if name not in taken))


def captioners_in(name: str) -> list[str]:
    """The captioners that the name of a column or file names.

    The full name counts in any spelling (`ShareGPT4V`, `instruct_blip`), the short one as a word (`long_ib_caption`) or
    in capitals (`longIBcaption`).
    """
    plain, words = _plain(name), [word.lower() for word in _WORD.findall(name)]
    found = []
    for captioner, (short, full) in _SHORT_AND_FULL_NAMES.items():
        around = r"(?:long|short|raw|captions?|texts?)*"
        as_word = re.compile(f"{around}{short.lower()}{around}")
        in_capitals = re.search(f"(?<![A-Z]){short}(?![A-Z])", name)
        if full in plain or in_capitals or any(map(as_word.fullmatch, words)):
            found.append(captioner)
    return found


def _find_url(free: Sequence[str], names: Sequence[str]) -> str:
    candidates = [name for name in free if _OTHER_LINKS.isdisjoint(_words(name))]
    url = _only([name for name in candidates if re.search(r"urls?$|^urls?", _plain(name))], "the URLs", "url")
    url = url or _only([name for name in candidates if _LINK_NAMES.fullmatch(_plain(name))], "the URLs", "url")
    if url is None:
        raise ColumnChoiceError(
            f"no column's name says that it holds the URLs; its columns are {_shown(names) or 'none'}", "url"
        )
    return url


def _find_captions(free: Sequence[str], captioner: str) -> str | None:
    """The column of a captioner's long texts; None if there is none. Short texts are not meant."""
    named = [name for name in free if captioners_in(name) == [captioner] and not _is_about_a_text(name)]
    long = [name for name in named if "long" in _plain(name)]
    others = [name for name in named if "short" not in _plain(name)]
    return _only(long or others, f"the long texts of {captioner}", captioner)


def _only_texts(raw: Sequence[str], captioner: str) -> dict[str, str]:
    """The one column of texts that are not raw, as that of the captioner that the file's name names."""
    texts = [name for name in raw if _TEXT_WORDS.search(_plain(name)) and not _is_raw(name)]
    long = [name for name in texts if "long" in _plain(name)]
    others = [name for name in texts if "short" not in _plain(name)]
    column = _only(long or others, f"the long texts of {captioner}, which the file's name names", captioner)
    return {} if column is None else {captioner: column}


def _find_text(raw: Sequence[str]) -> str | None:
    """The column of the raw texts: one that says so in its name before one that is called `caption` or `text`."""
    texts = [name for name in raw if "short" not in _plain(name) and "long" not in _plain(name)]
    for candidates in (
        [name for name in texts if _plain(name).startswith("raw") or "raw" in _words(name)],
        [name for name in texts if _ALT_NAMES.fullmatch(_plain(name))],
        [name for name in texts if _PLAIN_TEXT_NAMES.fullmatch(_plain(name))],
    ):
        if candidates:
            return _only(candidates, "the raw texts", "text")
    return None


def _is_raw(name: str) -> bool:
    return _plain(name).startswith("raw") or "raw" in _words(name) or bool(_ALT_NAMES.fullmatch(_plain(name)))


def _is_about_a_text(name: str) -> bool:
    return any(map(_OTHER_VALUES.fullmatch, _words(name)))


def _only(candidates: Sequence[str], what: str, wanted: str) -> str | None:
    if len(candidates) > 1:
        raise ColumnChoiceError(f"several columns can hold {what}: {_shown(candidates)}", wanted)
    return candidates[0] if candidates else None


def _words(name: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(name)}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:60]) for name in names[:40])
