"""What is asked of the dataset, from the page's form: words, which texts, their flags and length, the source."""

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
from lotlip_data.manifests.schema import FLAGS_SUFFIX
from lotlip_data.pipeline.viewer.paging import Filter
from lotlip_data.pipeline.viewer.samples import Samples

RAW = "raw"
IDENTITIES = ("uid", "url")
NO_FLAG, SOME_FLAG, MISSING = "none", "some", "missing"
_TERM = re.compile(r'"([^"]+)"|(\S+)')
_FIELDS = {"q": "", "text": "", "flag": "", "source": "", "least": "", "most": ""}


@dataclass(frozen=True)
class Query:
    """A sample is wanted where it is of the source and one of the chosen texts meets everything else."""

    q: str = ""
    """Words, or phrases in double quotes, that all stand in that text; letter case aside."""
    text: str = ""
    """`raw`, a captioner, `uid` or `url`; empty: the raw text or any captioner's."""
    flag: str = ""
    """A long text's flag, or NO_FLAG, SOME_FLAG, MISSING (there is no long text)."""
    source: str = ""
    least: int | None = None
    """Words that the text has at least."""
    most: int | None = None

    @classmethod
    def of(cls, asked: Mapping[str, str], samples: Samples) -> "Query":
        """From a URL's parameters; those of others are ignored. Raises UserError where one makes no sense."""
        given = {name: asked.get(name, empty).strip() for name, empty in _FIELDS.items()}
        allowed = {
            "text": ("", RAW, *samples.captioners, *IDENTITIES),
            "flag": ("", NO_FLAG, SOME_FLAG, MISSING, *samples.flags),
            "source": ("", *samples.sources),
        }
        for name, values in allowed.items():
            if given[name] not in values:
                raise UserError(f"{name}: there is no {given[name]!r}; there are {', '.join(filter(None, values))}")
        least, most = (_number(name, given[name]) for name in ("least", "most"))
        return cls(given["q"], given["text"], given["flag"], given["source"], least, most)

    @property
    def asked(self) -> dict[str, str]:
        """The parameters of a URL that ask this."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return {name: str(value) for name, value in values.items() if value not in ("", None)}

    def filter(self, samples: Samples) -> Filter:
        """Which rows of the dataset's Parquet files are wanted."""
        if not self.asked:
            return Filter()
        texts = (self.text,) if self.text else (RAW, *samples.captioners)
        conditions = [_Raws() if name == RAW else _Text(name, name in samples.captioners) for name in texts]
        of_source = bool(self.source)
        columns = [column for one in conditions for column in one.columns] + ["sources"] * of_source

        def match(table: pa.Table) -> np.ndarray:
            found = functools.reduce(operator.or_, (one.match(table, self) for one in conditions))
            return found & _any_of(table["sources"], self._is_source) if of_source else found

        return Filter(columns, match)

    def _is_source(self, names: Any) -> np.ndarray:
        return _bools(pc.equal(names, self.source))

    def meets(self, texts: Any) -> np.ndarray:
        """Which of these texts have the words that are asked for, and the length."""
        found = np.ones(len(texts), bool)
        for quoted, word in _TERM.findall(self.q):
            found &= _bools(pc.match_substring(texts, quoted or word, ignore_case=True))
        if self.least is not None or self.most is not None:
            words = np.asarray(pc.fill_null(pc.count_substring_regex(texts, r"\S+"), -1))
            found &= words >= (self.least or 0)
            found &= words <= (words if self.most is None else self.most)
        return found


class _Raws:
    """The raw texts of all sources, of which one is to meet everything; they have no flags."""

    columns: Sequence[str] = ("raws",)

    def match(self, table: pa.Table, query: Query) -> np.ndarray:
        return np.zeros(len(table), bool) if query.flag else _any_of(table["raws"], query.meets)


@dataclass(frozen=True)
class _Text:
    """One column of texts; a captioner's has flags beside it."""

    name: str
    is_long: bool

    @property
    def columns(self) -> list[str]:
        return [self.name, self.name + FLAGS_SUFFIX] if self.is_long else [self.name]

    def match(self, table: pa.Table, query: Query) -> np.ndarray:
        found = query.meets(table[self.name])
        return found & self._flagged(table, query.flag) if query.flag else found

    def _flagged(self, table: pa.Table, flag: str) -> np.ndarray:
        if not self.is_long:
            return np.zeros(len(table), bool)
        missing = _bools(pc.is_null(table[self.name]))
        if flag == MISSING:
            return missing
        flags = pc.fill_null(table[self.name + FLAGS_SUFFIX], "")
        if flag == NO_FLAG:
            return _bools(pc.equal(flags, "")) & ~missing
        if flag == SOME_FLAG:
            return _bools(pc.not_equal(flags, ""))
        return _bools(pc.match_substring_regex(flags, rf"(^| ){re.escape(flag)}( |$)"))


def _any_of(column: Any, match: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Which lists of a column have an item that matches."""
    lists = column.combine_chunks()
    rows = pc.list_parent_indices(lists).to_numpy()[match(pc.list_flatten(lists))]
    found = np.zeros(len(lists), bool)
    found[rows] = True
    return found


def _bools(values: Any) -> np.ndarray:
    """A column of bools as numpy's, null as False."""
    return np.asarray(pc.fill_null(values, False), dtype=bool)


def _number(name: str, value: str) -> int | None:
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise UserError(f"{name}: {value!r} is no number of words; give one, such as 40")
    return int(value)
