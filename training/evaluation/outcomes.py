"""The outcome of each query of an evaluation, in a compact form that is stored with the results.

The outcomes of a retrieval set, of a classification set and of a selection set are

    {"queries": DIGEST, "texts_per_image": "5x4999 4x1", "t2i": {"R@1": BITS, …}, "i2t": {"R@1": BITS, …}}
    {"queries": DIGEST, "top1": BITS}
    {"queries": DIGEST, "queries_per_image": {CATEGORY: "1x52 3x1", …}, "accuracy": {CATEGORY: BITS, …}}

BITS is one bit per query, packed by `numpy.packbits` and written in base64: 17 KB for 100,000 queries. The queries of
`t2i` are the texts, and those of a selection set are pairs of an image and its captions: in both, the queries of one
image stand after another. `texts_per_image` and `queries_per_image` have their numbers, image by image, as
NUMBERxIMAGES. All other queries are images. Two results with the same digest have the same queries.
"""

import base64
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation.bootstrap import Interval, Values, share_interval

REMEDY = "evaluate this model again"
SELECTION_LABELS = {"accuracy": "Acc.", "text_only": "text-only Acc."}
"""The figures of a selection set, each of which is given by category, as tables call them."""
_TOLERANCE = 1e-9
"""The largest difference of a figure and the share of its bits. Both are computed in float64."""

Path = tuple[str, ...]
"""Where a figure is in the figures of a set: ("t2i", "R@1"), ("i2t", "R@5"), ("top1",), ("accuracy", "swap_att"), …"""
Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of one set, read and checked."""

    queries: str
    """Digest of the queries: their images, texts and order."""
    hits: Mapping[Path, Bits]
    """For each figure, whether each query is found."""
    clusters: Mapping[str, Values] = field(default_factory=dict)
    """The number of queries of each image: of `t2i`, or of each category of a selection set. All other queries are of
    different images."""

    def cluster_sizes(self, path: Path) -> Values:
        """The number of queries that belong to each image, for the queries of one figure."""
        sizes = self.clusters.get(path[-1] if path[0] in SELECTION_LABELS else path[0])
        return np.ones(len(self.hits[path]), np.int64) if sizes is None else sizes

    def interval(self, path: Path) -> Interval:
        """The 95% interval of a figure."""
        return share_interval(self.hits[path], self.cluster_sizes(path))

    def intervals(self) -> dict[str, Any]:
        """The intervals of all figures, nested as the figures are."""
        nested: dict[str, Any] = {}
        for path in self.hits:
            place = nested
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = list(self.interval(path))
        return nested

    def encode(self) -> dict[str, Any]:
        """The form that is stored."""
        encoded: dict[str, Any] = {"queries": self.queries}
        counts = {name: _encode_counts(sizes) for name, sizes in self.clusters.items()}
        if "t2i" in counts:
            encoded["texts_per_image"] = counts.pop("t2i")
        if counts:
            encoded["queries_per_image"] = counts
        for path, hits in self.hits.items():
            place = encoded
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = base64.b64encode(np.packbits(hits).tobytes()).decode()
        return encoded


def retrieval_outcomes(
    hits: Mapping[str, Mapping[str, Tensor]], image_of_text: Sequence[int], queries: str
) -> Outcomes:
    """The outcomes of a retrieval set.

    Args:
        hits: For `t2i` and `i2t` and each figure, whether each query is found: bool [M] or [N].
        image_of_text: The index of the image of each text, [M].
        queries: Digest of the queries.
    """
    images = np.asarray(image_of_text, np.int64)
    order = np.argsort(images, kind="stable")
    arrays: dict[Path, Bits] = {
        (way, name): found.numpy() for way, figures in hits.items() for name, found in figures.items()
    }
    in_order = {path: found[order] if path[0] == "t2i" else found for path, found in arrays.items()}
    return Outcomes(queries, in_order, {"t2i": np.bincount(images)})


def decode_outcomes(encoded: Mapping[str, Any], figures: Mapping[str, Any], owner: str) -> Outcomes:
    """Read the outcomes of a set.

    Args:
        encoded: As `Outcomes.encode` returns them.
        figures: The figures of the set, which must be the shares of the outcomes.
        owner: Beginning of an error message.

    Raises:
        UserError: If the outcomes are damaged or do not give the figures.
    """
    try:
        clusters, hits = {}, {}
        if "t2i" in figures:
            clusters["t2i"] = _decode_counts(encoded["texts_per_image"], figures["texts"], figures["images"])
        for category in figures.get("accuracy", ()):
            number = figures["queries"][category]
            clusters[category] = _decode_counts(encoded["queries_per_image"][category], number)
        for path in _figure_paths(figures):
            hits[path] = _decode_bits(_at(encoded, path), _query_count(figures, path))
            if abs(np.count_nonzero(hits[path]) / max(1, len(hits[path])) - _at(figures, path)) > _TOLERANCE:
                raise ValueError(f"{' '.join(path)} is not the share of its outcomes")
        return Outcomes(str(encoded["queries"]), hits, clusters)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{owner}: the outcomes per query are damaged ({error}); {REMEDY}") from None


def _figure_paths(figures: Mapping[str, Any]) -> list[Path]:
    nested = ("t2i", "i2t") if "t2i" in figures else tuple(SELECTION_LABELS)
    paths: list[Path] = [(group, name) for group in nested if group in figures for name in figures[group]]
    return paths or [("top1",)]


def _query_count(figures: Mapping[str, Any], path: Path) -> int:
    if path[0] in SELECTION_LABELS:
        return int(figures["queries"][path[-1]])
    return int(figures["texts" if path[0] == "t2i" else "images"])


def _at(nested: Mapping[str, Any], path: Path) -> Any:
    value: Any = nested
    for name in path:
        value = value[name]
    return value


def _decode_bits(text: str, count: int) -> Bits:
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes for {count} queries")
    return np.unpackbits(packed, count=count).astype(np.bool_)


def _encode_counts(counts: Values) -> str:
    return " ".join(f"{number}x{len(list(run))}" for number, run in itertools.groupby(counts.tolist()))


def _decode_counts(text: str, queries: int, images: int | None = None) -> Values:
    """The number of queries of each image. Raises ValueError if they have other sums, as far as these are known."""
    runs = np.array([list(map(int, run.split("x"))) for run in text.split()], np.int64).reshape(-1, 2)
    numbers, lengths = runs.T
    if (
        (runs < 1).any()
        or (runs > queries).any()
        or numbers @ lengths != queries
        or images not in (None, lengths.sum())
    ):
        raise ValueError(f"the numbers of queries per image are not those of {queries} queries")
    return np.repeat(numbers, lengths)
