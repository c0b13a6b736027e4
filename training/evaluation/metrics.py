"""Recall and accuracy from unit features: block by block, and ties count against the model."""

from collections.abc import Sequence

import torch
from torch import Tensor

SCORES = 2**21
"""Scores that are held at once: 8 MiB of float32."""
GALLERY = 1024
"""Rows of the gallery that are multiplied at once, in float64."""


def recall(
    image: Tensor, text: Tensor, image_of_text: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
    """R@k both ways: `t2i` and `i2t`, each {"R@1": share in [0, 1], …}.

    `image` [N, D] and `text` [M, D] have unit rows; text j belongs to image `image_of_text[j]`, and an image may have
    several texts: it is found if any of them is among the first k. Memory beside the features does not grow with
    N × M: SCORES scores and GALLERY rows. Raises ValueError where an image has no text.
    """
    owner = torch.as_tensor(image_of_text)
    if len(owner) != len(text):
        raise ValueError(f"{len(text)} texts, but {len(owner)} of them are assigned to images")
    each = torch.arange(len(image))
    if len(bare := each[~torch.isin(each, owner)]):
        raise ValueError(f"image {bare[0].item()} has no text; leave out images without")
    ranks = {"t2i": _ranks(text, image, owner, each), "i2t": _ranks(image, text, each, owner)}
    return {way: {f"R@{k}": (rank < k).double().mean().item() for k in ks} for way, rank in ranks.items()}


def accuracy(image: Tensor, classes: Tensor, labels: Sequence[int]) -> float:
    """Top-1 accuracy of images [N, D] against class features [C, D]."""
    ranks = _ranks(image, classes, torch.as_tensor(labels), torch.arange(len(classes)))
    return (ranks == 0).double().mean().item()


def _ranks(query: Tensor, gallery: Tensor, of_query: Tensor, of_gallery: Tensor) -> Tensor:
    """How many wrong items of the gallery score at least as high as the best right one, for each query.

    An item is right for a query that has the same label.
    """
    ranks = torch.empty(len(query), dtype=torch.int64)
    size = max(1, SCORES // max(1, len(gallery)))
    for start in range(0, len(query), size):
        some, labels = query[start : start + size], of_query[start : start + size]
        scores = _scores(some, gallery)
        right = labels[:, None] == of_gallery[None, :]
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        ranks[start : start + size] = (~(scores < best) & ~right).sum(dim=1)  # what is no number is never below
    return ranks


def _scores(query: Tensor, gallery: Tensor) -> Tensor:
    """float32 [Q, G]. Equal rows must tie, but a product's last bit depends on where it stands: so float64 first."""
    exact = query.double()
    scores = torch.empty(len(query), len(gallery))
    for start in range(0, len(gallery), GALLERY):
        scores[:, start : start + GALLERY] = exact @ gallery[start : start + GALLERY].double().T
    return scores
