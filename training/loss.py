"""The contrastive loss on short and long texts (paper, Eq. 1–6)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class Loss:
    """`total` is what is minimised; `short` and `long` are its two terms, as scaled in it."""

    total: Tensor
    short: Tensor
    long: Tensor


def contrastive(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """L(v, t) of Eq. 1–3: the two-way softmax loss over the batch, ½(image→text + text→image), batch mean.

    `image` and `text` are [B, D] with unit rows, `scale` the factor 1/τ.
    """
    logits = scale * image @ text.T
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def lotlip_loss(image: Tensor, short: Tensor, long: Tensor, scale: Tensor, reduction: Reduction = "sum") -> Loss:
    """Short plus long loss: the raw text's [CLS], and every long text's [CLS] and corner tokens (Eq. 4–6).

    `image` [B, D], `short` [B, D], `long` [B, T, m + 1, D], all with unit rows; T = 0 leaves the short loss alone.
    `sum` adds all 1 + T(m + 1) terms (paper), `mean` averages them (the authors' code).
    """
    short_term = contrastive(image, short, scale)
    features = long.flatten(1, 2).unbind(1)
    long_term = sum((contrastive(image, feature, scale) for feature in features), start=torch.zeros_like(short_term))
    if reduction == "mean":
        count = 1 + len(features)
        short_term, long_term = short_term / count, long_term / count
    return Loss(short_term + long_term, short_term, long_term)
