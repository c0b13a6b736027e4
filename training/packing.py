"""Texts through the text tower without computing their padding.

A raw text of 18 tokens and a long one of 70 cost their own tokens, not 128 each: texts share rows, each with
positions of its own and a mask that keeps them apart. So all of them are one call of the tower, whose weights and their
gradients are read and written once. Of several widths of the rows the cheapest is taken: wide ones leave less room
unused, and cost more attention. With an encoder that would mix them each text has a row of its own.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lotlip_data.training.models.corner_attention import PADDING
from lotlip_data.training.models.towers import TextTower


@dataclass(frozen=True)
class Embedded:
    """Features [N, m + 1, D] in the texts' order, not normalised; the tokens they have and those that were computed."""

    features: Tensor
    real: int
    computed: int


WIDTHS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Of rows, that are tried: times the longest text."""


def cheapest_rows(lengths: Sequence[int], hidden: int) -> tuple[list[list[int]], int]:
    """The texts in rows, and the rows' width, for an encoder whose tokens have `hidden` numbers.

    A layer takes 24 hidden² operations a token for its matrices, and 4 width × hidden for its attention, which take
    twice as long as those of a matrix product (measured on a CPU: rows of 64 to 512 tokens, BERT-base's layers).
    """
    longest = max(lengths)
    tried = {round(longest * times): shared_rows(lengths, round(longest * times)) for times in WIDTHS}
    width = min(tried, key=lambda width: len(tried[width]) * width * (6 * hidden + 2 * width))
    return tried[width], width


def shared_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """The texts, by index, in rows of `width` tokens: each where it leaves the least room, the longest ones first."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # sorted: the room that is left, and the row
    for text in np.argsort(np.asarray(lengths), kind="stable")[::-1].tolist():
        at = bisect.bisect_left(room, (lengths[text], 0))
        if at == len(room):
            rows.append([text])
            left, row = width, len(rows) - 1
        else:
            left, row = room.pop(at)
            rows[row].append(text)
        bisect.insort(room, (left - lengths[text], row))
    return rows


def embed(tower: TextTower, ids: Sequence[Sequence[int]], pieces: int = 1) -> Embedded:
    """Features of texts given by their token ids, as `tower` gives them padded, within the rounding of a sum.

    With `pieces` above 1 no more than about that share of the tokens is in work at once, and in memory, forward and
    backward: the features of a piece are computed without keeping anything, and once more, with the same dropout, when
    their gradient has come. The gradient is so that of all texts at once, however many terms of the loss they meet in
    (GradCache: Gao et al. 2021, arXiv 2101.06983).
    """
    device = tower.proj.weight.device
    lengths = [len(row) for row in ids]
    if tower.shares_rows:
        rows, width = cheapest_rows(lengths, tower.proj.in_features)
    else:
        rows, width = [[text] for text in range(len(ids))], max(lengths)
    tokens, text, place, heads = _layout(ids, rows, width, tower.pad_id)
    # One look-up for all: its gradient is as large as the vocabulary, and would be that of every piece again.
    known, word = np.unique(tokens, return_inverse=True)
    words = tower.encoder.get_input_embeddings()(torch.from_numpy(known).to(device))
    each = -(-len(rows) // pieces)
    features = []
    for first in range(0, len(rows), each):
        some = slice(first, first + each)
        begin, end = (sum(map(len, rows[:count])) for count in (first, first + each))
        arrays = (tokens[some], text[some], place[some], heads[begin:end] - first * width)
        here, *layout = (torch.from_numpy(array).to(device) for array in arrays)
        looked_up = F.embedding(torch.from_numpy(word.reshape(tokens.shape)[some]).to(device), words)
        given = (here, looked_up, *layout)
        features.append(checkpoint(tower, *given, use_reentrant=False) if pieces > 1 else tower(*given))
    order = np.empty(len(ids), dtype=np.int64)
    order[[index for row in rows for index in row]] = np.arange(len(ids))
    return Embedded(torch.cat(features)[torch.from_numpy(order).to(device)], sum(lengths), tokens.size)


def _layout(
    ids: Sequence[Sequence[int]], rows: list[list[int]], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of rows of texts: token ids, text and place [R, width], and where in all tokens each text begins, in that order.

    Padding is all at place 0: a row may have more of it than an encoder has positions.
    """
    tokens = np.full((len(rows), width), pad_id, dtype=np.int64)
    text = np.full((len(rows), width), PADDING, dtype=np.int64)
    place = np.zeros((len(rows), width), dtype=np.int64)
    heads = []
    for number, row in enumerate(rows):
        at = 0
        for index in row:
            some = slice(at, at + len(ids[index]))
            tokens[number, some] = ids[index]
            text[number, some] = index
            place[number, some] = np.arange(len(ids[index]))
            heads.append(number * width + at)
            at += len(ids[index])
    return tokens, text, place, np.array(heads, dtype=np.int64)
