"""The search form of the sample page: words, which texts, their flags, length and score, and the source."""

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import (
    FLAGS_SUFFIX,
    piece_scores_column,
    raw_scores_column,
    text_score_column,
)
from lotlip_data.pipeline.viewer.paging import Filter
from lotlip_data.pipeline.viewer.samples import Samples
from lotlip_data.pipeline.viewer.scoring import PIECES

RAW = "raw"
IDENTITIES = ("uid", "url")
NO_FLAG, ANY_FLAG, MISSING = "none", "some", "missing"
SCORE_CHARACTERS = 30
_TERM = re.compile(r'"([^"]+)"|(\S+)')
_PARAMETERS = ("q", "text", "flag", "source", "least", "most", "score", "level", "low", "high")
_NO_CONDITION = ("score", "level")


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
    score: str = ""
    """The score that `low` and `high`, the order of the list and the tints mean. Empty means the first one."""
    level: str = ""
    """What has the score: empty for the text, or PIECES for one of its sub-captions."""
    low: float | None = None
    """Minimum score."""
    high: float | None = None
    """Maximum score."""

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
            "score": samples.scoring.names,
            "level": (PIECES,) if samples.scoring.of_texts else (),
        }
        for name, choices in allowed.items():
            if values[name] and values[name] not in choices:
                known = f"choose one of {', '.join(choices)}" if choices else "the dataset has none"
                raise UserError(f"{name}: {values[name]!r} is unknown; {known}")
        low, high = (_parse_score(name, values[name], samples) for name in ("low", "high"))
        least, most = (_parse_words(name, values[name]) for name in ("least", "most"))
        return cls(values["q"], values["text"], values["flag"], values["source"], least, most,
                   values["score"], values["level"], low, high)  # fmt: skip

    @property
    def parameters(self) -> dict[str, str]:
        """The URL parameters of this query, without those at their defaults."""
        values = {name: getattr(self, name) for name in _PARAMETERS}
        return {name: str(value) for name, value in values.items() if value not in ("", None)}

    @property
    def conditions(self) -> dict[str, str]:
        """The parameters that a sample has to meet."""
        return {name: value for name, value in self.parameters.items() if name not in _NO_CONDITION}

    @property
    def has_range(self) -> bool:
        """Whether a sample has to have a score in a range."""
        return self.low is not None or self.high is not None

    def filter(self, samples: Samples) -> Filter:
        """Return the filter of this query for the dataset's Parquet files."""
        if not self.conditions:
            return Filter()
        score = samples.scoring.name(self.score) if self.has_range else ""
        of_image = score if score in samples.scoring.of_images else ""
        of_texts = "" if of_image else score
        names = (self.text,) if self.text else scored_texts(samples) if of_texts else (RAW, *samples.captioners)
        fields = [
            _RawTexts(of_texts) if name == RAW else _TextColumn(name, name in samples.captioners, of_texts, self.level)
            for name in names
        ]
        columns = [column for text_field in fields for column in text_field.columns]
        columns += ["sources"] if self.source else []
        columns += [of_image] if of_image else []

        def match(table: pa.Table) -> np.ndarray:
            is_match = functools.reduce(operator.or_, (text_field.match(table, self) for text_field in fields))
            if of_image:
                is_match = is_match & self.match_scores(table[of_image])
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

    def match_scores(self, scores: Any) -> np.ndarray:
        """Return, as bool [scores], which scores are in the range of this query. No score is in none."""
        values = np.asarray(pc.fill_null(scores, math.nan), np.float32)
        is_match = ~np.isnan(values)
        if self.low is not None:
            is_match &= values >= np.float32(self.low)
        if self.high is not None:
            is_match &= values <= np.float32(self.high)
        return is_match


def scored_texts(samples: Samples) -> tuple[str, ...]:
    """The texts whose score counts where the form chooses none: the long texts, or without captioners the raw ones."""
    return samples.captioners or (RAW,)


def score_column(name: str, score: str, level: str) -> str | None:
    """The column with a score of a text, or of its sub-captions; None if there is none.

    Args:
        name: RAW or a captioner.
        score: SCORE or a scorer of texts.
        level: As in `Query`.
    """
    if level == PIECES:
        return None if name == RAW else piece_scores_column(name, score)
    return raw_scores_column(score) if name == RAW else text_score_column(name, score)


@dataclass(frozen=True)
class _RawTexts:
    """The raw texts of a sample, one per source. One of them has to match; raw texts have neither flags nor
    sub-captions."""

    score: str = ""
    """The score that has to be in the query's range; empty for none."""

    @property
    def columns(self) -> list[str]:
        return ["raws", raw_scores_column(self.score)] if self.score else ["raws"]

    def match(self, table: pa.Table, query: Query) -> np.ndarray:
        if query.flag or (self.score and query.level == PIECES):
            return np.zeros(len(table), bool)
        if not self.score:
            return _any_item(table["raws"], query.match_texts)
        scores = pc.list_flatten(table[raw_scores_column(self.score)].combine_chunks())

        def match_texts(texts: Any) -> np.ndarray:
            if len(texts) != len(scores):  # a damaged dataset
                return np.zeros(len(texts), bool)
            return query.match_texts(texts) & query.match_scores(scores)

        return _any_item(table["raws"], match_texts)


@dataclass(frozen=True)
class _TextColumn:
    """A column of texts. A captioner's column has a column of flags beside it."""

    name: str
    is_captioner: bool
    score: str = ""
    """The score that has to be in the query's range; empty for none."""
    level: str = ""

    @property
    def columns(self) -> list[str]:
        if not self.is_captioner:
            return [self.name]
        return [self.name, self.name + FLAGS_SUFFIX, *([self._scores] if self.score else [])]

    @property
    def _scores(self) -> str:
        column = score_column(self.name, self.score, self.level)
        assert column is not None
        return column

    def match(self, table: pa.Table, query: Query) -> np.ndarray:
        is_match = query.match_texts(table[self.name])
        if self.score:
            is_match = is_match & self._match_score(table, query)
        return is_match & self._match_flag(table, query.flag) if query.flag else is_match

    def _match_score(self, table: pa.Table, query: Query) -> np.ndarray:
        if not self.is_captioner:
            return np.zeros(len(table), bool)
        scores = table[self._scores]
        return _any_item(scores, query.match_scores) if self.level == PIECES else query.match_scores(scores)

    def _match_flag(self, table: pa.Table, flag: str) -> np.ndarray:
        if not self.is_captioner:
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


def _parse_score(name: str, value: str, samples: Samples) -> float | None:
    """Return a score, or None for an empty field."""
    if not value:
        return None
    if not samples.scoring.names:
        raise UserError(f"{name}: the dataset has no scores; `lotlip-data score` makes them")
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if not math.isfinite(score) or len(value) > SCORE_CHARACTERS:
        raise UserError(f"{name}: {value!r} is not a score; enter a number such as 0.25")
    return score
