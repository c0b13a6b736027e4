"""The search form of the sample page: words, which texts, their flags and length, and the source."""

import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import FLAGS_SUFFIX
from lotlip_data.pipeline.viewer.paging import Filter
from lotlip_data.pipeline.viewer.samples import Samples

RAW = "raw"
IDENTITIES = ("uid", "url")
NO_FLAG, ANY_FLAG, MISSING = "none", "some", "missing"
_TERM = re.compile(r'"([^"]+)"|(\S+)')
_PARAMETERS = ("q", "text", "flag", "source", "least", "most")


@dataclass(frozen=True)
class Query:
    """A submitted form. A sample matches if it is from the source and one of the chosen texts meets everything else.

    The fields are the form's fields and the parameters of its URL.
    """

    q: str = ""
    """Words, or phrases in double quotes, that the text must all contain, in any letter case."""
    text: str = ""
    """Where to search: `raw`, a captioner, `uid` or `url`. Empty means the raw text or any captioner's text."""
    flag: str = ""
    """A flag of the long text, or NO_FLAG, ANY_FLAG, or MISSING (there is no long text)."""
    source: str = ""
    least: int | None = None
    """Minimum number of words in the text."""
    most: int | None = None
    """Maximum number of words in the text."""

    @classmethod
    def parse(cls, parameters: Mapping[str, str], samples: Samples) -> "Query":
        """Return the query of a URL's parameters; unknown parameters are ignored.

        Raises:
            UserError: A value is not one of the allowed values.
        """
        values = {name: parameters.get(name, "").strip() for name in _PARAMETERS}
        allowed = {
            "text": (RAW, *samples.captioners, *IDENTITIES),
            "flag": (NO_FLAG, ANY_FLAG, MISSING, *samples.flags),
            "source": samples.sources,
        }
        for name, choices in allowed.items():
            if values[name] and values[name] not in choices:
                raise UserError(f"{name}: {values[name]!r} is unknown; choose one of {', '.join(choices)}")
        least, most = (_parse_words(name, values[name]) for name in ("least", "most"))
        return cls(values["q"], values["text"], values["flag"], values["source"], least, most)

    @property
    def parameters(self) -> dict[str, str]:
        """The URL parameters of this query, without those at their defaults."""
        values = {name: getattr(self, name) for name in _PARAMETERS}
        return {name: str(value) for name, value in values.items() if value not in ("", None)}

    def filter(self, samples: Samples) -> Filter:
        """Return the filter of this query for the dataset's Parquet files."""
        if not self.parameters:
            return Filter()
        names = (self.text,) if self.text else (RAW, *samples.captioners)
        fields = [_RawTexts() if name == RAW else _TextColumn(name, name in samples.captioners) for name in names]
        columns = [column for text_field in fields for column in text_field.columns]
        columns += ["sources"] if self.source else []

        def match(table: pa.Table) -> np.ndarray:
            is_match = functools.reduce(operator.or_, (text_field.match(table, self) for text_field in fields))
            return is_match & _any_item(table["sources"], self._is_source) if self.source else is_match

        return Filter(columns, match)

    def _is_source(self, names: Any) -> np.ndarray:
        return _to_bools(pc.equal(names, self.source))

    def match_texts(self, texts: Any) -> np.ndarray:
        """Return, as bool [texts], which texts have the words and the length of this query."""
        is_match = np.ones(len(texts), bool)
        for phrase, word in _TERM.findall(self.q):
            is_match &= _to_bools(pc.match_substring(texts, phrase or word, ignore_case=True))
        if self.least is not None or self.most is not None:
            words = np.asarray(pc.fill_null(pc.count_substring_regex(texts, r"\S+"), -1))
            is_match &= words >= (self.least or 0)
            is_match &= words <= (words if self.most is None else self.most)
        return is_match


class _RawTexts:
    """The raw texts of a sample, one per source. One of them has to match; raw texts have no flags."""

    columns: Sequence[str] = ("raws",)

    def match(self, table: pa.Table, query: Query) -> np.ndarray:
        return np.zeros(len(table), bool) if query.flag else _any_item(table["raws"], query.match_texts)


@dataclass(frozen=True)
class _TextColumn:
    """A column of texts. A captioner's column has a column of flags beside it."""

    name: str
    has_flags: bool

    @property
    def columns(self) -> list[str]:
        return [self.name, self.name + FLAGS_SUFFIX] if self.has_flags else [self.name]

    def match(self, table: pa.Table, query: Query) -> np.ndarray:
        is_match = query.match_texts(table[self.name])
        return is_match & self._match_flag(table, query.flag) if query.flag else is_match

    def _match_flag(self, table: pa.Table, flag: str) -> np.ndarray:
        if not self.has_flags:
            return np.zeros(len(table), bool)
        missing = _to_bools(pc.is_null(table[self.name]))
        if flag == MISSING:
            return missing
        flags = pc.fill_null(table[self.name + FLAGS_SUFFIX], "")
        if flag == NO_FLAG:
            return _to_bools(pc.equal(flags, "")) & ~missing
        if flag == ANY_FLAG:
            return _to_bools(pc.not_equal(flags, ""))
        return _to_bools(pc.match_substring_regex(flags, rf"(^| ){re.escape(flag)}( |$)"))


def _any_item(column: Any, match: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Return, as bool [rows], which lists of a list column have an item that matches."""
    lists = column.combine_chunks()
    rows = pc.list_parent_indices(lists).to_numpy()[match(pc.list_flatten(lists))]
    is_match = np.zeros(len(lists), bool)
    is_match[rows] = True
    return is_match


def _to_bools(values: Any) -> np.ndarray:
    """Return a column of bools as a numpy array, with null as False."""
    return np.asarray(pc.fill_null(values, False), dtype=bool)


def _parse_words(name: str, value: str) -> int | None:
    """Return a number of words, or None for an empty field."""
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise UserError(f"{name}: {value!r} is not a number of words; enter a whole number such as 40")
    return int(value)
