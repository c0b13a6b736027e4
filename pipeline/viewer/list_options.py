"""How the list of samples is shown: which texts, in which order, how many on a page, and by which captioners."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from starlette.datastructures import QueryParams

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.viewer.samples import Samples
from lotlip_data.pipeline.viewer.search_form import RAW, Query, score_column, scored_texts

SHOWN = {"": "images and texts", "full": "images and full texts", "short": "images and short texts", "images": "images"}
"""Values of `show` with their labels. By default, texts are shortened if there are many captioners."""
MANY_CAPTIONERS = 3
"""With more captioners than this, texts are shortened by default."""
PAGE_SIZES = (12, 24, 48, 96)
DEFAULT_SIZE = 24
Parameters = list[tuple[str, str]]


class Order(NamedTuple):
    """An order of the list: its label, and what it compares."""

    label: str
    by: Literal["words", "pixels", "score"]
    descending: bool


ORDERS = {
    "longest": Order("longest text first", "words", True),
    "shortest": Order("shortest text first", "words", False),
    "largest": Order("largest image first", "pixels", True),
    "smallest": Order("smallest image first", "pixels", False),
    "score-high": Order("highest score first", "score", True),
    "score-low": Order("lowest score first", "score", False),
}
"""Orders by the value of `sort`; the default is the order of the dataset."""


@dataclass(frozen=True)
class ListOptions:
    """The options of a list, as its URL gives them."""

    show: str = ""
    size: int = DEFAULT_SIZE
    sort: str = ""
    captioners: tuple[str, ...] = ()
    """The captioners whose texts are shown; empty means all."""

    @classmethod
    def parse(cls, parameters: QueryParams, samples: Samples) -> "ListOptions":
        """Return the options of a URL.

        Raises:
            UserError: A value is not one of the allowed values.
        """
        show = _one_of("show", parameters.get("show", ""), tuple(SHOWN))
        sort = _one_of("sort", parameters.get("sort", ""), ("", *orders(samples)))
        chosen = {_one_of("captioner", name, samples.captioners) for name in parameters.getlist("captioner")}
        captioners = tuple(name for name in samples.captioners if name in chosen)
        is_all = len(captioners) == len(samples.captioners)
        return cls(show, parse_size(parameters, DEFAULT_SIZE), sort, () if is_all else captioners)

    @property
    def parameters(self) -> Parameters:
        """The URL parameters of these options, without those at their defaults."""
        values = [("show", self.show), ("sort", self.sort)]
        values += [("size", str(self.size))] if self.size != DEFAULT_SIZE else []
        return [(name, value) for name, value in values if value] + [("captioner", name) for name in self.captioners]

    def shown_captioners(self, samples: Samples) -> tuple[str, ...]:
        """Return the captioners whose texts are shown."""
        return self.captioners or samples.captioners

    def shortens_texts(self, samples: Samples) -> bool:
        """Return whether texts are shortened to a few lines."""
        return self.show == "short" or (not self.show and len(self.shown_captioners(samples)) > MANY_CAPTIONERS)


def orders(samples: Samples) -> Mapping[str, Order]:
    """The orders of a dataset. One without scores has none by score."""
    return {name: order for name, order in ORDERS.items() if order.by != "score" or samples.scoring.names}


def parse_size(parameters: QueryParams, default: int) -> int:
    """Return the number of rows per page that a URL asks for. Raises UserError if it is not one of PAGE_SIZES."""
    sizes = tuple(map(str, PAGE_SIZES))
    return int(_one_of("size", parameters.get("size", "") or str(default), sizes))


def sort_key(sort: str, query: Query, samples: Samples) -> tuple[list[str], Callable[[pa.Table], np.ndarray]]:
    """Return the columns and the key of an order: float [rows], smaller first, NaN where there is nothing to compare.

    Args:
        sort: One of ORDERS.
        query: Its `text` says which text is measured; by default, the longest one of all captioners. Of several scores
            of a sample, the highest one counts, or the lowest one if that is first.
        samples: The dataset.
    """
    order = ORDERS[sort]
    sign = -1.0 if order.descending else 1.0
    if order.by == "score":
        columns = _score_columns(query, samples)
        return columns, lambda table: sign * _extreme(table, columns, order.descending)
    if order.by == "pixels":
        return ["original_width", "original_height"], lambda table: sign * _pixels(table)
    columns = [query.text] if query.text in (RAW, *samples.captioners) else list(samples.captioners) or [RAW]
    return columns, lambda table: sign * _words(table, columns)


def _score_columns(query: Query, samples: Samples) -> list[str]:
    """The columns with the score that a query chooses."""
    score = samples.scoring.name(query.score)
    if score in samples.scoring.of_images:
        return [score]
    names = (query.text,) if query.text in (RAW, *samples.captioners) else scored_texts(samples)
    columns = [score_column(name, score, query.level) for name in names]
    return [column for column in columns if column is not None]


def _extreme(table: pa.Table, columns: Sequence[str], highest: bool) -> np.ndarray:
    """Return float [rows]: the highest or the lowest of the numbers in these columns; NaN if there is none."""
    pick = np.fmax if highest else np.fmin
    extreme = np.full(len(table), np.nan)
    for name in columns:
        if not pa.types.is_list(table[name].type):
            extreme = pick(extreme, _floats(table[name]))
            continue
        lists = table[name].combine_chunks()
        pick.at(extreme, pc.list_parent_indices(lists).to_numpy(), _floats(pc.list_flatten(lists)))
    return extreme


def _pixels(table: pa.Table) -> np.ndarray:
    width, height = (_floats(table[name]) for name in ("original_width", "original_height"))
    return width * height


def _words(table: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Return float [rows]: the number of words of the longest of these texts; NaN if all are null."""
    counts = [_floats(pc.count_substring_regex(table[name], r"\S+")) for name in columns]
    return np.fmax.reduce(counts)


def _floats(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), np.nan), dtype=float)


def _one_of(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise UserError(f"{name}: {value!r} is unknown; choose one of {', '.join(filter(None, choices))}")
    return value
