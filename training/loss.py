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

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["sum", "mean"]

MAX_LOGITS = 2**24
"""Logits that exist at a time: 64 MiB in float32, two or three times."""
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
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    short_weight: float | None = None,
    short_image: Tensor | None = None,
    local_rows: slice = ALL_ROWS,
) -> Loss:
    """Short loss plus long loss (paper, Sec. 4.3).

    The short loss is Eq. 1 with the [CLS] feature of the short text. The long loss (Eq. 4–6) is the sum of Eq. 1 over
    the [CLS] feature and the corner features of each long text. With `bias`, SigLIP's loss takes the place of Eq. 1;
    with the reduction `mean` the result is then FLAIR's multi-positive sigmoid loss (arXiv 2412.03561), in
    which an image is a positive of each of its texts: a sum over pairs does not depend on how the texts are grouped.

    Args:
        image: Image features [B, D] with unit rows.
        short: [CLS] features of the short texts [B, D] with unit rows.
        long: [CLS] and corner features of the long texts [B, T, K, D] with unit rows. With T = 0 the long loss is 0.
        scale: The factor 1/τ on cosine similarities, a scalar.
        reduction: `sum` adds all 1 + T·K terms (paper); `mean` averages them (the authors' code).
        bias: The summand of the logits in SigLIP's loss, a scalar.
        label_smoothing: As of `contrastive_loss`. 0 with `bias`.
        short_weight: λ in λ · short loss + (1 − λ) · long loss (DeBias-CLIP). None: their sum.
        short_image: Image features [B, D] for the short loss alone, where they differ from `image` (Long-CLIP).
        local_rows: The rows whose loss this process computes. The losses of all processes add up to the batch's loss.
    """

    def term(image: Tensor, text: Tensor) -> Tensor:
        if bias is not None:
            return sigmoid_loss(image, text, scale, bias, local_rows)
        return contrastive_loss(image, text, scale, local_rows, label_smoothing)

    short_term = term(image if short_image is None else short_image, short)
    long_features = long.flatten(1, 2).unbind(1)  # T·K tensors [B, D]
    long_term = sum((term(image, feature) for feature in long_features), start=torch.zeros_like(short_term))
    short_factor, long_factor = term_factors(len(long_features), reduction, short_weight)
    short_term, long_term = short_factor * short_term, long_factor * long_term
    return Loss(short_term + long_term, short_term, long_term)


def term_factors(long_terms: int, reduction: Reduction, short_weight: float | None = None) -> tuple[float, float]:
    """The factors of the short term and of each of the long terms in the loss."""
    if short_weight is not None:
        return short_weight, 1 - short_weight
    factor = 1.0 if reduction == "sum" else 1 / (1 + long_terms)
    return factor, factor


def contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor, local_rows: slice = ALL_ROWS, label_smoothing: float = 0.0
) -> Tensor:
    """The two-way softmax loss L(v, t) of Eq. 1–3: ½ (image→text + text→image), batch mean.

    The paper's equations have neither ½ nor 1/B. The authors' code has both.

    Args:
        image: Image features [B, D] with unit rows.
        text: Text features [B, D] with unit rows; row i belongs to image i.
        scale: The factor 1/τ, a scalar.
        local_rows: The rows whose loss this process computes. The losses of all processes add up to the batch's loss.
        label_smoothing: Share of the target that is spread evenly over the batch.
    """
    first = local_rows.start
    image_to_text = one_way_loss(image[local_rows], text, scale, first, label_smoothing)
    text_to_image = one_way_loss(text[local_rows], image, scale, first, label_smoothing)
    return (image_to_text + text_to_image) / 2


def one_way_loss(query: Tensor, keys: Tensor, scale: Tensor, first: int = 0, label_smoothing: float = 0.0) -> Tensor:
    """Softmax loss of each query among all keys (Eq. 2 or 3), summed over the queries and divided by B.

    Args:
        query: [b, D]; query i belongs to key `first` + i.
        keys: [B, D].
        scale: The factor 1/τ, a scalar.
        first: Index of the key that the first query belongs to.
        label_smoothing: Share of the target that is spread evenly over the keys.

    Returns:
        The share of these queries in the batch mean: the shares of all processes add up to it.
    """

    def softmax(logits: Tensor, target: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        normalizer = logits.logsumexp(1, keepdim=True)
        losses = normalizer - (1 - label_smoothing) * logits.gather(1, target)
        if label_smoothing:
            losses -= label_smoothing * logits.mean(1, keepdim=True)
        if not gradient:
            return losses.sum(), None
        d_logits = (logits - normalizer).exp_()  # softmax, minus the target
        d_logits.scatter_add_(1, target, torch.full_like(normalizer, label_smoothing - 1))
        return losses.sum(), d_logits.sub_(label_smoothing / len(keys)) if label_smoothing else d_logits

    return _chunked_loss(softmax, query, keys, scale, None, first)


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, local_rows: slice = ALL_ROWS) -> Tensor:
    """SigLIP's loss: the logistic loss of every pair of an image and a text, summed and divided by B.

    The logits are scale · cosine + bias; a pair is positive where image and text belong together (arXiv 2303.15343,
    Sec. 3.2).

    Args:
        image: Image features [B, D] with unit rows.
        text: Text features [B, D] with unit rows; row i belongs to image i.
        scale: The factor t on cosine similarities, a scalar.
        bias: The summand b, a scalar.
        local_rows: The images whose pairs this process computes. The losses of all processes add up to the batch's.
    """

    def sigmoid(logits: Tensor, target: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        # All pairs as negatives; that of a positive is its logit less. Above 50, softplus(x) is x.
        loss = F.softplus(logits, threshold=50.0).sum() - logits.gather(1, target).sum()
        if not gradient:
            return loss, None
        return loss, logits.sigmoid().scatter_add_(1, target, -torch.ones_like(target, dtype=logits.dtype))

    return _chunked_loss(sigmoid, image[local_rows], text, scale, bias, local_rows.start)


def loss_of_guessing(batch: int, bias: float | None = None) -> float:
    """One term of the loss of a batch in which all similarities are 0, for the softmax or a bias of the sigmoid."""
    if bias is None:
        return math.log(batch)
    return math.log1p(math.exp(-bias)) + (batch - 1) * math.log1p(math.exp(bias))


_LossForm = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
"""The summed loss of logits [rows, B] with targets [rows, 1], and its gradient by the logits if it is wanted."""


def _chunked_loss(
    form: _LossForm, query: Tensor, keys: Tensor, scale: Tensor, bias: Tensor | None, first: int
) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):  # logits of up to 100 need float32's precision
        loss: Tensor = _ChunkedLoss.apply(form, query, keys, scale, bias, first, max(1, MAX_LOGITS // len(keys)))
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """A loss of the logits of queries and keys, `rows` queries at a time.

    The forward pass computes the gradients too, because only it has the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        form: _LossForm,
        query: Tensor,
        keys: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        first: int,
        rows: int,
    ) -> Tensor:
        needs_query, needs_keys, needs_scale, needs_bias = ctx.needs_input_grad[1:5]
        d_query = torch.empty_like(query) if needs_query else None
        d_keys = torch.zeros_like(keys) if needs_keys else None
        d_scale = torch.zeros_like(scale) if needs_scale else None
        d_bias = torch.zeros_like(scale) if needs_bias else None
        loss = torch.zeros_like(scale)
        for start in range(0, len(query), rows):
            chunk = query[start : start + rows]
            target = torch.arange(first + start, first + start + len(chunk), device=query.device)[:, None]
            logits = (scale * chunk) @ keys.T  # [rows, B]
            if bias is not None:
                logits += bias
            chunk_loss, d_logits = form(logits, target, any(ctx.needs_input_grad))
            loss += chunk_loss
            if d_logits is None:
                continue
            if d_query is not None:
                torch.mm(d_logits, keys, out=d_query[start : start + rows])
            if d_keys is not None:
                d_keys.addmm_(d_logits.T, chunk)
            if d_bias is not None:
                d_bias += d_logits.sum()
            if d_scale is not None:
                if bias is not None:
                    logits -= bias
                d_scale += torch.dot(d_logits.flatten(), logits.flatten()) / scale
        for gradient in (d_query, d_keys):
            if gradient is not None:
                gradient *= scale / len(keys)
        for gradient in (d_scale, d_bias):
            if gradient is not None:
                gradient /= len(keys)
        ctx.gradients = d_query, d_keys, d_scale, d_bias
        return loss / len(keys)

    @staticmethod
    def backward(ctx: Any, *d_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if gradient is None else d_loss[0] * gradient for gradient in ctx.gradients)
        return None, *gradients, None, None


def project_on_principal_components(image: Tensor, components: int) -> Tensor:
    """Rebuild image features [B, D] from their first principal components in the batch, as Long-CLIP does.

    The result [B, D] is not normalized again. The gradient treats the directions as constants: the gradient of an
    eigenvector grows without bound where two eigenvalues are close.
    """
    mean = image.mean(0)
    centered = image - mean
    with torch.no_grad():
        directions = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -components:]
    return mean + centered @ directions @ directions.T
