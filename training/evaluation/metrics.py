"""Recall and accuracy from unit features, computed in blocks. Ties count against the model.

Shapes: N images, M texts, C classes, D feature dimensions; Q queries, G items of a gallery.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SCORES_PER_BLOCK = 2**21
"""Number of scores in memory at a time: 8 MiB of float32."""
GALLERY_ROWS_PER_BLOCK = 1024
"""Number of gallery rows that are multiplied at a time, in float64."""


def recall_hits(
    image: Tensor, text: Tensor, image_of_text: Sequence[int], ks: Sequence[int] = (1, 5, 10), distractors: int = 0
) -> dict[str, dict[str, Tensor]]:
    """Whether each query finds its item among the first k, text to image and image to text.

    An image may have several texts: it counts as found if any of them is among the first k. Besides the features,
    memory holds SCORES_PER_BLOCK scores and GALLERY_ROWS_PER_BLOCK rows, and does not grow with N × M.

    Args:
        image: Unit features [N, D].
        text: Unit features [M, D].
        image_of_text: The index of the image of each text, [M].
        ks: The values of k.
        distractors: Number of images, the last ones, that have no text: texts are compared with them, but they are no
            queries.

    Returns:
        For `t2i` and `i2t`: {"R@1": bool [M] or [N − distractors], …}.

    Raises:
        ValueError: If an image has no text, or if `image_of_text` does not have M items.
    """
    text_labels = torch.as_tensor(image_of_text)
    if len(text_labels) != len(text):
        raise ValueError(f"{len(text)} texts, but {len(text_labels)} of them are assigned to images")
    image_labels = torch.arange(len(image))
    queries = len(image) - distractors
    textless = image_labels[:queries][~torch.isin(image_labels[:queries], text_labels)]
    if len(textless):
        raise ValueError(f"image {textless[0].item()} has no text; leave out images without text")
    ranks = {
        "t2i": _ranks(text, image, text_labels, image_labels),
        "i2t": _ranks(image[:queries], text, image_labels[:queries], text_labels),
    }
    return {direction: {f"R@{k}": rank < k for k in ks} for direction, rank in ranks.items()}


def recall(
    image: Tensor, text: Tensor, image_of_text: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
    """Recall at k: the shares in [0, 1] of the hits that `recall_hits` returns for the same arguments."""
    return shares(recall_hits(image, text, image_of_text, ks))


def shares(hits: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    """The share of each figure's hits."""
    return {direction: {name: share(found) for name, found in figures.items()} for direction, figures in hits.items()}


def share(hits: Tensor) -> float:
    """The share of hits, bool [Q], in float64."""
    return hits.double().mean().item()


def accuracy(image: Tensor, classes: Tensor, labels: Sequence[int]) -> float:
    """Top-1 accuracy in [0, 1]: the share of `accuracy_hits` for the same arguments."""
    return share(accuracy_hits(image, classes, labels))


def accuracy_hits(image: Tensor, classes: Tensor, labels: Sequence[int]) -> Tensor:
    """Whether the class of each image scores highest: bool [N].

    Args:
        image: Unit features [N, D].
        classes: Unit features [C, D].
        labels: The index of the class of each image, [N]; −1 for an image that is never right.
    """
    return _ranks(image, classes, torch.as_tensor(labels), torch.arange(len(classes))) == 0


def _ranks(query: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """For each query, the number of wrong items that score at least as high as the best right item: int64 [Q].

    An item is right if it has the label of the query.
    """
    ranks = torch.empty(len(query), dtype=torch.int64)
    block_rows = max(1, SCORES_PER_BLOCK // max(1, len(gallery)))
    for start in range(0, len(query), block_rows):
        block = slice(start, start + block_rows)
        scores = _scores(query[block], gallery)
        right = query_labels[block, None] == gallery_labels[None, :]
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        ranks[block] = (~(scores < best) & ~right).sum(dim=1)  # not `>=`: a NaN counts against the model
    return ranks


def _scores(query: Tensor, gallery: Tensor) -> Tensor:
    """The products, float32 [Q, G].

    They are computed in float64 first: in float32, the last bit of a product depends on the position of its row, and
    equal rows must tie.
    """
    exact_query = query.double()
    scores = torch.empty(len(query), len(gallery))
    for start in range(0, len(gallery), GALLERY_ROWS_PER_BLOCK):
        block = slice(start, start + GALLERY_ROWS_PER_BLOCK)
        scores[:, block] = exact_query @ gallery[block].double().T
    return scores
