"""Recall and accuracy from unit features: block by block, and ties count against the model."""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 1024


def recall(
    image: Tensor, text: Tensor, image_of_text: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
    """R@k both ways: `t2i` and `i2t`, each {"R@1": share in [0, 1], …}.

    `image` [N, D] and `text` [M, D] have unit rows; text j belongs to image `image_of_text[j]`, and an image may have
    several texts: it is found if any of them is among the first k. Memory is that of one block of BLOCK queries.
    Raises ValueError where an image has no text.
    """
    owner = torch.as_tensor(image_of_text)
    if len(owner) != len(text):
        raise ValueError(f"{len(text)} texts, but {len(owner)} of them are assigned to images")
    if len(bare := set(range(len(image))) - set(owner.tolist())):
        raise ValueError(f"image {min(bare)} has no text; leave out images without")
    own = owner[None, :] == torch.arange(len(image))[:, None]  # [N, M]
    ranks = {"t2i": _ranks(text, image, own.T), "i2t": _ranks(image, text, own)}
    return {way: {f"R@{k}": (rank < k).double().mean().item() for k in ks} for way, rank in ranks.items()}


def accuracy(image: Tensor, classes: Tensor, labels: Sequence[int]) -> float:
    """Top-1 accuracy of images [N, D] against class features [C, D]."""
    own = torch.as_tensor(labels)[:, None] == torch.arange(len(classes))[None, :]
    return (_ranks(image, classes, own) == 0).double().mean().item()


def _ranks(query: Tensor, gallery: Tensor, own: Tensor) -> Tensor:
    """How many wrong items of the gallery score at least as high as the best right one, for each query."""
    ranks = []
    for some, right in zip(query.split(BLOCK), own.split(BLOCK), strict=True):
        # Equal rows must tie, but a product's last bit depends on where it stands: compute in float64, compare in 32.
        scores = (some.double() @ gallery.double().T).float()
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(((scores >= best) & ~right).sum(dim=1))
    return torch.cat(ranks)
