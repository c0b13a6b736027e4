"""Texts through the text tower without computing their padding.

A raw text of 18 tokens and a long one of 70 cost their own tokens, not 128 each: texts are sorted by length and cut
into buckets, each padded to its own longest. Every text stands alone in its row, so the attention mask is the paper's
as it is, on any encoder and either attention path. The buckets are the cheapest there are, padding against calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lotlip_data.training.towers import TextTower

CALL_COST = {"cpu": 64, "cuda": 2048}
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
    padded = [_pad([ids[index] for index in group], tower.pad_id) for group in groups]
    # One look-up for all: its gradient is as large as the vocabulary, and would be that of every bucket again.
    known, place_of_word = np.unique(np.concatenate([rows.ravel() for rows in padded]), return_inverse=True)
    words = tower.encoder.get_input_embeddings()(torch.from_numpy(known).to(device))
    features, computed = [], 0
    for rows in padded:
        here = torch.from_numpy(place_of_word[computed : computed + rows.size].reshape(rows.shape)).to(device)
        given = torch.from_numpy(rows).to(device), F.embedding(here, words)
        features.append(checkpoint(tower, *given, use_reentrant=False) if pieces > 1 else tower(*given))
        computed += rows.size
    place = torch.empty(len(ids), dtype=torch.int64)
    place[[index for group in groups for index in group]] = torch.arange(len(ids))
    return Embedded(torch.cat(features)[place.to(device)], sum(lengths), computed)


def _pad(ids: Sequence[Sequence[int]], pad_id: int) -> np.ndarray:
    """int64 [N, longest]."""
    padded = np.full((len(ids), max(map(len, ids))), pad_id, dtype=np.int64)
    for row, text in zip(padded, ids, strict=True):
        row[: len(text)] = text
    return padded
