"""Selection: a query is an image, its right captions, and wrong captions that differ from them in few words.

It is answered if the lowest score of a right caption is above the highest score of a wrong one. With one right caption
this is the accuracy of SugarCrepe (RAIVNLab/sugar-crepe, main_eval.py), with two the image-to-text task of SugarCrepe++
(Sri-Harsha/scpp, VLMs/test_Variants_CLIP.py), with five the pooled test of sDCI (facebookresearch/DCI,
run_clip_dense_cap_eval.py). A tie counts against the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lotlip_data.training.evaluation.bootstrap import Values
from lotlip_data.training.evaluation.outcomes import Bits, Outcomes, Path

OVERALL = "overall"
"""The name of all queries of a set, among those of its categories."""
_SCORES_PER_BLOCK = 2**11
"""Number of scores that are computed at a time. As many features of images and of captions are in memory in float64:
12 MiB each with 768 dimensions."""


class Choice(NamedTuple):
    """The captions of a query."""

    category: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]


Rows = Sequence[Sequence[int]]
"""For each query, the rows of captions in the features of texts."""


def selection_hits(image: Tensor, image_of_query: Sequence[int], text: Tensor, right: Rows, wrong: Rows) -> Tensor:
    """Whether all right captions of each query score above all of its wrong ones: bool [Q].

    Args:
        image: Unit features of the images, [N, D].
        image_of_query: The index of the image of each query, [Q].
        text: Unit features of the captions, [M, D].
        right: For each query, the rows of its right captions; at least one.
        wrong: For each query, the rows of its wrong captions.
    """
    hits = torch.empty(len(image_of_query), dtype=torch.bool)
    for block in _blocks([len(a) + len(b) for a, b in zip(right, wrong, strict=True)]):
        lowest = _extremes(image, image_of_query[block], text, right[block], "amin")
        highest = _extremes(image, image_of_query[block], text, wrong[block], "amax")
        hits[block] = lowest > highest  # a NaN counts against the model
    return hits


def text_only_hits(text: Tensor, right: Rows, wrong: Rows) -> Tensor:
    """Whether the two right captions of each query score higher with each other than each with a wrong one: bool [Q].

    The text-only task of SugarCrepe++. Arguments as of `selection_hits`; each query has two right captions.
    """
    hits = torch.ones(len(right), dtype=torch.bool)
    for anchor, other in ((0, 1), (1, 0)):
        hits &= selection_hits(text, [rows[anchor] for rows in right], text, [[rows[other]] for rows in right], wrong)
    return hits


def selection_outcomes(
    hits: Mapping[str, Tensor], categories: Sequence[str], pictures: Sequence[int], queries: str, *, has_overall: bool
) -> Outcomes:
    """The outcomes of a selection set, by figure and category.

    Args:
        hits: For each figure, whether each query is answered: bool [Q].
        categories: The category of each query, [Q].
        pictures: The picture of each query, [Q]: queries of one picture, also of different regions, belong together.
        queries: Digest of the queries.
        has_overall: Whether all queries together are a figure of their own.
    """
    names, of_picture = np.array(categories), np.array(pictures, np.int64)
    members: dict[str, Values] = {OVERALL: np.arange(len(names))} if has_overall else {}
    members |= {name: np.flatnonzero(names == name) for name in dict.fromkeys(categories)}
    order = {name: rows[np.argsort(of_picture[rows], kind="stable")] for name, rows in members.items()}
    clusters = {name: np.unique(of_picture[rows], return_counts=True)[1] for name, rows in order.items()}
    found: dict[Path, Bits] = {
        (figure, name): answered.numpy()[rows] for figure, answered in hits.items() for name, rows in order.items()
    }
    return Outcomes(queries, found, clusters)


def _blocks(sizes: Sequence[int]) -> Iterator[slice]:
    """Slices of the queries with at most _SCORES_PER_BLOCK captions each, or one query."""
    start = total = 0
    for index, size in enumerate(sizes):
        if total and total + size > _SCORES_PER_BLOCK:
            yield slice(start, index)
            start, total = index, 0
        total += size
    yield slice(start, len(sizes))


def _extremes(
    image: Tensor, image_of_query: Sequence[int], text: Tensor, rows: Rows, reduction: Literal["amin", "amax"]
) -> Tensor:
    """The lowest ("amin") or highest ("amax") score of the captions of each query, float32 [Q].

    Scores are rounded from float64, so that equal captions tie. Without captions, the extreme is infinite.
    """
    owner = torch.tensor([query for query, of_query in enumerate(rows) for _ in of_query], dtype=torch.int64)
    flat = torch.tensor([row for of_query in rows for row in of_query], dtype=torch.int64)
    images = torch.as_tensor(image_of_query)[owner]
    scores = (image[images].double() * text[flat].double()).sum(dim=1).float()
    start = torch.full((len(rows),), torch.inf if reduction == "amin" else -torch.inf)
    return start.scatter_reduce(0, owner, scores, reduction)
