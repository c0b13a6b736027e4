"""The forms of the contrastive loss alone, for `train.py`: ours against autograd."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lotlip_data.training.loss import lotlip_loss


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds of a call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def plain_loss(
    image: Tensor,
    texts: Tensor,
    scale: Tensor,
    *,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    short_image: Tensor | None = None,
    short_weight: float | None = None,
) -> Tensor:
    """The sum over the K texts per image of the symmetric softmax loss, or of the sigmoid loss if there is a bias.

    image: [B, D]; texts: [B, K, D], the short text first. The options are those of `lotlip_loss`.
    """
    target = torch.arange(len(image))
    labels = 2 * torch.eye(len(image)) - 1
    total = torch.zeros(())
    for number, text in enumerate(texts.unbind(1)):
        logits = scale * (image if number or short_image is None else short_image) @ text.T
        if bias is not None:
            loss = -F.logsigmoid(labels * (logits + bias)).sum() / len(image)
        else:
            both = [F.cross_entropy(each, target, label_smoothing=label_smoothing) for each in (logits, logits.T)]
            loss = sum(both, torch.zeros(())) / 2
        weight = 1.0 if short_weight is None else 1 - short_weight if number else short_weight
        total = total + weight * loss
    return total


def measure_losses(batch: int, texts: int, pairs: int) -> dict[str, float]:
    """Print one line per form of the loss, and return the ratios of the plain time to ours, forward and backward."""
    torch.manual_seed(0)
    features = F.normalize(torch.randn(batch, 1 + texts, 768), dim=-1)
    image, text = (part.clone().requires_grad_() for part in (features[:, 0], features[:, 1:]))
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    forms: dict[str, dict[str, Any]] = {"softmax": {}, "smoothed": {"label_smoothing": 0.1}, "sigmoid": {"bias": bias}}
    ratios = {}
    for form, options in forms.items():

        def plain(options: dict[str, Any] = options) -> Tensor:
            return plain_loss(image, text, scale, **options)

        def ours(options: dict[str, Any] = options) -> Tensor:
            return lotlip_loss(image, text[:, 0], text[:, 1:, None], scale, **options).total

        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        for turn in range(pairs + 1):  # the first is a warm-up
            for name, loss in (("plain", plain), ("ours", ours))[:: 1 if turn % 2 else -1]:
                seconds[name].append(timed(lambda loss=loss: loss().backward())[0])
        ratio = statistics.median(a / b for a, b in zip(seconds["plain"][1:], seconds["ours"][1:], strict=True))
        own = statistics.median(seconds["ours"][1:])
        print(f"loss_{form}: {batch / own:.0f} samples/s with {texts} texts each; {ratio:.2f} times plain", flush=True)
        ratios[f"loss_{form}"] = round(ratio, 3)
    return ratios
