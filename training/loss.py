"""The contrastive loss on short and long texts (paper, Eq. 1–6), with memory linear in the batch size.

A batch of 16,384 with 3 long texts has 10 sets of text features. Autograd would keep 20 tables of logits for them, of
1 GiB each. Here only a few rows of logits exist at a time: the forward pass computes the gradients of the features from
them and keeps those gradients alone.

Shapes, also as suffixes of names:
    B  samples of the global batch
    b  samples of one process
    T  long texts per sample
    K  features per long text: 1 + m, [CLS] and m corner tokens (K = 1 where corner tokens have no loss)
    D  width of a feature
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Reduction = Literal["sum", "mean"]

MAX_LOGITS = 2**24
"""Logits that exist at a time: 64 MiB in float32, two or three times."""
PRINCIPAL_COMPONENTS = 32
"""Principal components of the image features that Long-CLIP matches short texts to."""
ALL_ROWS = slice(0, None)


@dataclass(frozen=True)
class Loss:
    """The minimized `total`, and its two terms as they are scaled in it. All are scalars."""

    total: Tensor
    short: Tensor
    long: Tensor


def lotlip_loss(
    image: Tensor,
    short: Tensor,
    long: Tensor,
    scale: Tensor,
    reduction: Reduction = "sum",
    *,
    short_image: Tensor | None = None,
    local_rows: slice = ALL_ROWS,
) -> Loss:
    """Short loss plus long loss (paper, Sec. 4.3).

    The short loss is Eq. 1 with the [CLS] feature of the raw text. The long loss (Eq. 4–6) is the sum of Eq. 1 over the
    [CLS] feature and the corner features of each long text.

    Args:
        image: Image features [B, D] with unit rows.
        short: [CLS] features of the raw texts [B, D] with unit rows.
        long: [CLS] and corner features of the long texts [B, T, K, D] with unit rows. With T = 0 the long loss is 0.
        scale: The factor 1/τ on cosine similarities, a scalar.
        reduction: `sum` adds all 1 + T·K terms (paper); `mean` averages them (the authors' code).
        short_image: Image features [B, D] for the short loss alone, where they differ from `image` (Long-CLIP).
        local_rows: The rows whose loss this process computes. The losses of all processes add up to the batch's loss.
    """
    short_term = contrastive_loss(image if short_image is None else short_image, short, scale, local_rows)
    long_features = long.flatten(1, 2).unbind(1)  # T·K tensors [B, D]
    long_terms = (contrastive_loss(image, feature, scale, local_rows) for feature in long_features)
    long_term = sum(long_terms, start=torch.zeros_like(short_term))
    if reduction == "mean":
        terms = 1 + len(long_features)
        short_term, long_term = short_term / terms, long_term / terms
    return Loss(short_term + long_term, short_term, long_term)


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, local_rows: slice = ALL_ROWS) -> Tensor:
    """The two-way softmax loss L(v, t) of Eq. 1–3: ½ (image→text + text→image), batch mean.

    The paper's equations have neither ½ nor 1/B. The authors' code has both.

    Args:
        image: Image features [B, D] with unit rows.
        text: Text features [B, D] with unit rows; row i belongs to image i.
        scale: The factor 1/τ, a scalar.
        local_rows: The rows whose loss this process computes. The losses of all processes add up to the batch's loss.
    """
    first = local_rows.start
    image_to_text = one_way_loss(image[local_rows], text, scale, first)
    text_to_image = one_way_loss(text[local_rows], image, scale, first)
    return (image_to_text + text_to_image) / 2


def one_way_loss(query: Tensor, keys: Tensor, scale: Tensor, first: int = 0) -> Tensor:
    """Softmax loss of each query among all keys (Eq. 2 or 3), summed over the queries and divided by B.

    Args:
        query: [b, D]; query i belongs to key `first` + i.
        keys: [B, D].
        scale: The factor 1/τ, a scalar.
        first: Index of the key that the first query belongs to.

    Returns:
        The share of these queries in the batch mean: the shares of all processes add up to it.
    """
    with torch.autocast(query.device.type, enabled=False):  # logits of up to 100 need float32's precision
        loss: Tensor = _OneWayLoss.apply(query, keys, scale, first, max(1, MAX_LOGITS // len(keys)))
    return loss


class _OneWayLoss(torch.autograd.Function):
    """`one_way_loss`. The forward pass computes the gradients too, because only it has the logits."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, scale: Tensor, first: int, rows: int) -> Tensor:
        needs_query, needs_keys, needs_scale = ctx.needs_input_grad[:3]
        d_query = torch.empty_like(query) if needs_query else None
        d_keys = torch.zeros_like(keys) if needs_keys else None
        d_scale = torch.zeros_like(scale) if needs_scale else None
        loss = torch.zeros_like(scale)
        for start in range(0, len(query), rows):
            chunk = query[start : start + rows]
            target = torch.arange(first + start, first + start + len(chunk), device=query.device)[:, None]
            logits = (scale * chunk) @ keys.T  # [rows, B]
            normalizer = logits.logsumexp(1, keepdim=True)
            loss += (normalizer - logits.gather(1, target)).sum()
            if not (needs_query or needs_keys or needs_scale):
                continue
            d_logits = (logits - normalizer).exp_()  # softmax, minus 1 at the target
            d_logits.scatter_add_(1, target, -torch.ones_like(normalizer))
            if d_query is not None:
                torch.mm(d_logits, keys, out=d_query[start : start + rows])
            if d_keys is not None:
                d_keys.addmm_(d_logits.T, chunk)
            if d_scale is not None:
                d_scale += torch.dot(d_logits.flatten(), logits.flatten()) / scale
        for gradient in (d_query, d_keys):
            if gradient is not None:
                gradient *= scale / len(keys)
        ctx.gradients = d_query, d_keys, None if d_scale is None else d_scale / len(keys)
        return loss / len(keys)

    @staticmethod
    def backward(ctx: Any, *d_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if gradient is None else d_loss[0] * gradient for gradient in ctx.gradients), None, None


def project_on_principal_components(image: Tensor, components: int = PRINCIPAL_COMPONENTS) -> Tensor:
    """Rebuild image features [B, D] from their first principal components in the batch, as Long-CLIP does.

    The result [B, D] is not normalized again. The gradient treats the directions as constants: the gradient of an
    eigenvector grows without bound where two eigenvalues are close.
    """
    mean = image.mean(0)
    centered = image - mean
    with torch.no_grad():
        directions = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -components:]
    return mean + centered @ directions @ directions.T
