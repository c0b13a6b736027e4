"""The distributions of the scores of a dataset: of each scorer and the combined one, by captioner and by source."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests.formats.schema import (
    SCORE,
    piece_scores_column,
    raw_scores_column,
    score_columns_of,
    scorers_of,
    scores_of_images,
    scores_of_texts,
    text_score_column,
)
from lotlip_data.pipeline.dataset.score_tally import ScoreTally
from lotlip_data.pipeline.dataset.scores import Level

COMBINED = "combined"
"""The kind of the combined score."""
LEVEL_NAMES: dict[Level, str] = {
    "sub_captions": "sub-captions",
    "texts": "long texts",
    "raw": "raw texts",
    "samples": "samples",
}
LABEL_WIDTH = 48


class ScoreTallies:
    """The scores of a dataset, in total and by source.

    Args:
        content: Its dataset.json.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._scorers = scorers_of(content)
        self._kinds = {name: scorer["kind"] for name, scorer in content.get("scorers", {}).items()}
        self._captioners = list(content["captioners"])
        self._limits = content.get("score_limits", {}).get("limits", [])
        self.columns = [column.name for column in score_columns_of(content)]
        """The columns that `add` reads besides `sources`."""
        self._raws = {raw_scores_column(name) for name in scores_of_texts(self._scorers)}
        self._tallies: defaultdict[tuple[str, str], ScoreTally] = defaultdict(ScoreTally)
        """By source, or empty for all, and by column."""

    def add(self, batch: pa.RecordBatch) -> None:
        """Count the scores of a batch. An image that several sources list counts for each, its texts too."""
        if not self.columns:
            return
        item_rows, item_sources = _items(batch["sources"])
        names = [name for name in dict.fromkeys(item_sources.tolist()) if name is not None]
        is_from = {name: item_sources == name for name in names}
        rows_from = {name: np.isin(np.arange(len(batch)), item_rows[is_from[name]]) for name in names}
        for column in self.columns:
            is_list = pa.types.is_list(batch.schema.field(column).type)
            rows, scores = _items(batch[column]) if is_list else (np.arange(len(batch)), _floats(batch[column]))
            self._tallies["", column].add(scores)
            for name in names:
                of_source = is_from[name] if column in self._raws else rows_from[name][rows]
                self._tallies[name, column].add(scores[of_source])

    def to_dict(self) -> dict[str, Any]:
        """`scores`, by scorer, and `score_limits`, the limits that leave something out; empty without scorers."""
        if not self._scorers:
            return {}
        sources = sorted({source for source, _ in self._tallies if source})
        scores = {}
        for name in scores_of_texts(self._scorers):
            scores[name] = {
                "scores": "texts",
                "kind": COMBINED if name == SCORE else self._kinds[name],
                **self._of_texts(name, ""),
                "sources": {source: self._of_texts(name, source) for source in sources},
            }
        for name in scores_of_images(self._scorers):
            by_source = {source: {"images": self._tally(source, name)} for source in sources}
            images = self._tally("", name)
            scores[name] = {"scores": "images", "kind": self._kinds[name], "images": images, "sources": by_source}
        return {"scores": scores, "score_limits": self._limits}

    def _of_texts(self, name: str, source: str) -> dict[str, Any]:
        captioners = {
            captioner: {
                "texts": self._tally(source, text_score_column(captioner, name)),
                "sub_captions": self._tally(source, piece_scores_column(captioner, name)),
            }
            for captioner in self._captioners
        }
        return {"captioners": captioners, "raw": self._tally(source, raw_scores_column(name))}

    def _tally(self, source: str, column: str) -> dict[str, Any]:
        return self._tallies[source, column].to_dict(full=not source)


def score_title(name: str) -> str:
    """What a score is called in tables and on pages."""
    return "combined score" if name == SCORE else name


def series(of_scorer: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a scorer, or one of its sources, scores, with its summary, as far as there are scores."""
    if "images" in of_scorer:
        found = [("images", of_scorer["images"])]
    else:
        found = [(f"texts by {name}", levels["texts"]) for name, levels in of_scorer["captioners"].items()]
        found += [
            (f"sub-captions by {name}", levels["sub_captions"]) for name, levels in of_scorer["captioners"].items()
        ]
        found += [("raw texts", of_scorer["raw"])]
    yield from ((label, summary) for label, summary in found if summary["count"])


def limit_sentence(limit: Mapping[str, Any]) -> str:
    """A limit of dataset.json in words."""
    ends = (("below", limit.get("minimum")), ("above", limit.get("maximum")))
    sides = [f"{side} {end:.6g}" for side, end in ends if end is not None]
    return f"{LEVEL_NAMES.get(limit['of'], limit['of'])} with {score_title(limit['score'])} {' or '.join(sides)}"


def table(stats: Mapping[str, Any]) -> list[str]:
    """The scores in the result of `dataset_stats`, as the lines of a table; empty without scores."""
    if "scores" not in stats:
        return []
    heads = ("count", "mean", "deviation", "5%", "median", "95%")
    lines = ["", f"{'scores':{LABEL_WIDTH}}" + "".join(f"{head:>12}" for head in heads)]
    for name, of_scorer in stats["scores"].items():
        lines += _rows(f"{score_title(name)}: ", of_scorer)
    if len(stats["sources"]) > 1:
        for source in stats["sources"]:
            for name, of_scorer in stats["scores"].items():
                lines += _rows(f"{source}: {score_title(name)}: ", of_scorer["sources"][source])
    limits = [limit_sentence(limit) for limit in stats["score_limits"]]
    return [*lines, f"left out by their scores: {'; '.join(limits) or 'nothing'}"]


def _rows(prefix: str, of_scorer: Mapping[str, Any]) -> list[str]:
    lines = []
    for label, summary in series(of_scorer):
        quantiles = summary["quantiles"]
        values = [summary["mean"], summary["deviation"], *(quantiles[percent] for percent in ("5", "50", "95"))]
        numbers = "".join(f"{format_score(value):>12}" for value in values)
        lines.append(f"{prefix + label:{LABEL_WIDTH}}{summary['count']:>12,}{numbers}")
    return lines


def format_score(value: float, digits: int = 4) -> str:
    """A score with this many significant digits, as people read it."""
    value += 0.0  # not minus zero
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.{digits}g}"


def _items(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The items of a column of lists, and the row of each."""
    items = pc.list_flatten(column)
    rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    return rows, _floats(items) if pa.types.is_floating(items.type) else _objects(items.to_pylist())


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _floats(column: pa.Array) -> np.ndarray:
    """float32 [n], with nan for null."""
    return column.cast(pa.float32()).to_numpy(zero_copy_only=False) if len(column) else np.zeros(0, np.float32)
