"""Texts through the text tower without computing their padding.

A raw text of 18 tokens and a long one of 70 cost their own tokens, not 128 each: texts are sorted by length and cut
into buckets, each padded to its own longest. Every text stands alone in its row, so the attention mask is the paper's
as it is, on any encoder and either attention path. The buckets are the cheapest there are, padding against calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lotlip_data.training.towers import TextTower

CALL_COST = {"cpu": 128, "cuda": 2048}
"""What one more call of the tower costs, in tokens. Measured on a CPU; of a GPU an estimate, from the launches of 12
layers' kernels forward and backward."""


@dataclass(frozen=True)
class Embedded:
    """Features [N, m + 1, D] in the texts' order, not normalised; the tokens they have and those that were computed."""

    features: Tensor
    real: int
    computed: int


def buckets(lengths: Sequence[int], call_cost: int, most: int | None = None) -> list[list[int]]:
    """The texts, by index, in buckets that cost least: the tokens of each padded to its longest, and `call_cost`.

    Exact, by dynamic programming over the lengths that occur. `most` bounds the tokens of a bucket, where a single text
    is not more already. Short texts come first.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    length, count = np.unique(np.asarray(lengths), return_counts=True)
    before = np.concatenate([[0], np.cumsum(count)])
    cost = np.zeros(len(length) + 1)
    start = np.zeros(len(length) + 1, dtype=int)
    for end in range(1, len(length) + 1):  # the cheapest way to cut the texts of the `end` smallest lengths
        costs = cost[:end] + (before[end] - before[:end]) * length[end - 1] + call_cost
        start[end] = int(costs.argmin())
        cost[end] = costs[start[end]]
    found: list[list[int]] = []
    end = len(length)
    while end:
        texts = order[before[start[end]] : before[end]].tolist()
        size = len(texts) if most is None else max(1, most // int(length[end - 1]))
        found[:0] = [texts[first : first + size] for first in range(0, len(texts), size)]
        end = int(start[end])
    return found


def embed(tower: TextTower, ids: Sequence[Sequence[int]], pieces: int = 1) -> Embedded:
    """Features of texts given by their token ids, as `tower` gives them padded, within the rounding of a sum.

    With `pieces` above 1 no more than about that share of the tokens is in work at once, and in memory, forward and
    backward: the features of a piece are computed without keeping anything, and once more, with the same dropout, when
    their gradient has come. The gradient is so that of all texts at once, however many terms of the loss they meet in
    (GradCache: Gao et al. 2021, arXiv 2101.06983).
    """
    device = tower.proj.weight.device
    lengths = [len(row) for row in ids]
    groups = buckets(lengths, call_cost := CALL_COST.get(device.type, CALL_COST["cuda"]))
    if pieces > 1:
        total = sum(len(group) * lengths[group[-1]] for group in groups)
        groups = buckets(lengths, call_cost, -(-total // pieces))
    features, computed = [], 0
    for group in groups:
        padded = _pad([ids[index] for index in group], tower.pad_id).to(device, non_blocking=True)
        features.append(checkpoint(tower, padded, use_reentrant=False) if pieces > 1 else tower(padded))
        computed += padded.numel()
    place = torch.empty(len(ids), dtype=torch.int64)
    place[[index for group in groups for index in group]] = torch.arange(len(ids))
    return Embedded(torch.cat(features)[place.to(device)], sum(lengths), computed)


def _pad(ids: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """int64 [N, longest]."""
    padded = np.full((len(ids), max(map(len, ids))), pad_id, dtype=np.int64)
    for row, text in zip(padded, ids, strict=True):
        row[: len(text)] = text
    return torch.from_numpy(padded)
