"""The contrastive loss on short and long texts (paper, Eq. 1–6).

A batch of 16,384 with 3 long texts has 10 text sets, and so 20 tables of logits of 1 GiB each, which autograd would
keep. Here a few rows of logits live at a time: their gradient is taken on the spot, and that of the features is kept.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Reduction = Literal["sum", "mean"]

LOGITS = 2**24
"""How many logits are held at once: 64 MiB in float32, two or three times."""
COMPONENTS = 32
"""Long-CLIP's: how many principal components of the image features short texts are matched to."""


@dataclass(frozen=True)
class Loss:
    """`total` is what is minimised; `short` and `long` are its two terms, as scaled in it."""

    total: Tensor
    short: Tensor
    long: Tensor


class _OneWay(torch.autograd.Function):
    """See `one_way`; its gradients are computed with it, as the logits are there then."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, scale: Tensor, first: int, rows: int) -> Tensor:
        needs_query, needs_keys, needs_scale = ctx.needs_input_grad[:3]
        d_query = torch.empty_like(query) if needs_query else None
        d_keys = torch.zeros_like(keys) if needs_keys else None
        d_scale = torch.zeros_like(scale) if needs_scale else None
        loss = torch.zeros_like(scale)
        for start in range(0, len(query), rows):
            some = query[start : start + rows]
            target = torch.arange(first + start, first + start + len(some), device=query.device)[:, None]
            logits = (scale * some) @ keys.T
            normaliser = logits.logsumexp(1, keepdim=True)
            loss += (normaliser - logits.gather(1, target)).sum()
            if not (needs_query or needs_keys or needs_scale):
                continue
            slope = (logits - normaliser).exp_()  # softmax, minus 1 at the target: the loss by the logits
            slope.scatter_add_(1, target, -torch.ones_like(normaliser))
            if d_query is not None:
                torch.mm(slope, keys, out=d_query[start : start + rows])
            if d_keys is not None:
                d_keys.addmm_(slope.T, some)
            if d_scale is not None:
                d_scale += torch.dot(slope.flatten(), logits.flatten()) / scale
        for gradient in (d_query, d_keys):
            if gradient is not None:
                gradient *= scale / len(keys)
        ctx.gradients = d_query, d_keys, None if d_scale is None else d_scale / len(keys)
        return loss / len(keys)

    @staticmethod
    def backward(ctx: Any, *slope: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if gradient is None else slope[0] * gradient for gradient in ctx.gradients), None, None


def one_way(query: Tensor, keys: Tensor, scale: Tensor, first: int = 0) -> Tensor:
    """Softmax loss of each query among all keys, summed over the queries and divided by the number of keys.

    `query` [b, D], `keys` [B, D]; the query i belongs to the key `first` + i. A process that holds b of the global
    batch's B rows gets its share of the batch mean: the shares add up to it. Memory is linear in B.
    """
    with torch.autocast(query.device.type, enabled=False):  # logits of up to 100 need all the digits they have
        loss: Tensor = _OneWay.apply(query, keys, scale, first, max(1, LOGITS // len(keys)))
    return loss


EVERY = slice(0, None)
"""All rows of a batch."""


def contrastive(image: Tensor, text: Tensor, scale: Tensor, here: slice = EVERY) -> Tensor:
    """L(v, t) of Eq. 1–3: the two-way softmax loss over the batch, ½(image→text + text→image), batch mean.

    `image` and `text` are [B, D] with unit rows, `scale` the factor 1/τ; `here` are the rows that a process answers
    for: the losses of all processes add up to the batch's.
    """
    first = here.start
    return (one_way(image[here], text, scale, first) + one_way(text[here], image, scale, first)) / 2


def lotlip_loss(
    image: Tensor,
    short: Tensor,
    long: Tensor,
    scale: Tensor,
    reduction: Reduction = "sum",
    *,
    short_image: Tensor | None = None,
    here: slice = EVERY,
) -> Loss:
    """Short plus long loss: the raw text's [CLS], and every long text's [CLS] and corner tokens (Eq. 4–6).

    `image` [B, D], `short` [B, D], `long` [B, T, m + 1, D], all with unit rows; T = 0 leaves the short loss alone.
    `sum` adds all 1 + T(m + 1) terms (paper), `mean` averages them (the authors' code). `short_image` is what short
    texts are matched to where that is not `image`. `here` are the rows of a process, as in `contrastive`.
    """
    short_term = contrastive(image if short_image is None else short_image, short, scale, here)
    features = long.flatten(1, 2).unbind(1)
    terms = (contrastive(image, feature, scale, here) for feature in features)
    long_term = sum(terms, start=torch.zeros_like(short_term))
    if reduction == "mean":
        count = 1 + len(features)
        short_term, long_term = short_term / count, long_term / count
    return Loss(short_term + long_term, short_term, long_term)


def primary_components(image: Tensor, components: int = COMPONENTS) -> Tensor:
    """`image` [B, D] rebuilt from its first principal components in the batch, as Long-CLIP has it: not unit again.

    The directions are taken as constants by the gradient: that of an eigenvector grows without bound where two
    eigenvalues meet.
    """
    mean = image.mean(0)
    centred = image - mean
    with torch.no_grad():
        directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -components:]
    return mean + centred @ directions @ directions.T
