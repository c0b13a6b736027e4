"""Sequence packing: texts through the text tower without computing their padding.

A raw text of 18 tokens and a long text of 70 cost their own tokens, not 128 each. Several texts share a row; each has
its own positions, and the attention mask separates them. All texts are one call of the tower, so its weights and their
gradients are read and written once. Several row widths are tried and the cheapest one is used: wider rows waste less
room but cost more attention. An encoder that would mix the texts of a row gets one text per row instead.

Shapes:
    N  texts
    R  rows
    L  tokens per row
    K  features per text: 1 + m, of the summary token and of m corner tokens
    D  width of a feature
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lotlip_data.training.models.row_layout import RowLayout
from lotlip_data.training.models.towers import TextTower

WIDTH_MULTIPLE = 8
"""Row widths are multiples of it: a GPU's matrix units are slower at others."""
WIDTH_FACTORS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)
"""The row widths that are tried, as multiples of the longest text."""


@dataclass(frozen=True)
class PackedFeatures:
    """Features of texts, in the order of the texts."""

    features: Tensor
    """[N, K, D], not normalized."""
    tokens: int
    """Tokens of the texts."""
    computed_tokens: int
    """Tokens that the tower computed, padding included."""


@dataclass(frozen=True)
class PackedTexts:
    """N texts, placed in rows for one text tower. Made on the CPU, ahead of the step that uses it."""

    rows: list[list[int]]
    """The texts of each row, as indices."""
    ids: np.ndarray
    """int64 [R, L]: the token ids."""
    layout: RowLayout
    """Where the texts stand in the rows, on the CPU."""
    distinct_ids: np.ndarray
    """int64: the token ids that occur, once each."""
    inverse: np.ndarray
    """int64 [R, L]: the index of each token's id in `distinct_ids`."""
    order: np.ndarray
    """int64 [N]: where each text stands among the texts of the rows."""
    tokens: int
    """Tokens of the texts, without padding."""

    def __len__(self) -> int:
        """N, the number of texts."""
        return len(self.order)


def pack_texts(tower: TextTower, ids: Sequence[Sequence[int]], padding: Sequence[int] = ()) -> PackedTexts:
    """Place texts in rows for the tower `tower`.

    Args:
        tower: The text tower.
        ids: Token ids of N texts, without padding.
        padding: Length of the padding before the words of the first texts. Those beyond its end have none. A tower that
            sees padding gets tokens of it. In any other the words move back, which costs no computation.
    """
    moves = [*padding, *[0] * (len(ids) - len(padding))]
    if (token := tower.family.prefix_token) is not None:
        ids = [[text_ids[0], *[token] * move, *text_ids[1:]] for text_ids, move in zip(ids, moves, strict=True)]
        moves = [0] * len(ids)
    lengths = [len(text_ids) for text_ids in ids]
    if tower.supports_packing:
        rows, width = pack_cheapest(lengths, tower.proj.in_features)
    else:
        rows, width = [[text] for text in range(len(ids))], max(lengths)
    row_ids = np.full((len(rows), width), tower.pad_id, dtype=np.int64)
    for row, texts in enumerate(rows):
        tokens = [token for text in texts for token in ids[text]]
        row_ids[row, : len(tokens)] = tokens
    distinct_ids, inverse = np.unique(row_ids, return_inverse=True)
    order = np.empty(len(ids), dtype=np.int64)
    order[[text for row in rows for text in row]] = np.arange(len(ids))
    row_lengths, row_moves = ([[each[text] for text in texts] for texts in rows] for each in (lengths, moves))
    layout = tower.placement.rows(row_lengths, width, row_moves)
    return PackedTexts(rows, row_ids, layout, distinct_ids, inverse.reshape(row_ids.shape), order, sum(lengths))


def embed_packed(tower: TextTower, texts: PackedTexts, chunks: int = 1) -> PackedFeatures:
    """Features of texts, equal to those of padded texts within the rounding of a sum.

    With `chunks` > 1 only about 1 / `chunks` of the tokens is in memory at a time, forward and backward. The forward
    pass of a chunk keeps no activations; the backward pass computes them again with the same dropout. The gradient is
    that of all texts at once, also where the loss combines them (GradCache: Gao et al. 2021, arXiv 2101.06983).

    Args:
        tower: The text tower.
        texts: The result of `pack_texts` for this tower.
        chunks: Number of parts in which the rows pass through the tower.
    """
    device = tower.proj.weight.device
    rows = texts.rows
    # One embedding look-up for all chunks: its gradient is as large as the vocabulary, and each look-up would need one.
    embeddings = tower.encoder.get_input_embeddings()(torch.from_numpy(texts.distinct_ids).to(device))
    rows_per_chunk = -(-len(rows) // chunks)
    features = []
    for first in range(0, len(rows), rows_per_chunk):
        chunk = slice(first, first + rows_per_chunk)
        chunk_texts = slice(*(sum(map(len, rows[:count])) for count in (first, first + rows_per_chunk)))
        chunk_ids, indices = (
            torch.from_numpy(array[chunk]).to(device, non_blocking=True) for array in (texts.ids, texts.inverse)
        )
        inputs = (chunk_ids, F.embedding(indices, embeddings), texts.layout.part(chunk, chunk_texts).to(device))
        features.append(checkpoint(tower, *inputs, use_reentrant=False) if chunks > 1 else tower(*inputs))
    in_order = torch.cat(features)[torch.from_numpy(texts.order).to(device)]
    return PackedFeatures(in_order, texts.tokens, texts.ids.size)


def pack_cheapest(lengths: Sequence[int], hidden: int) -> tuple[list[list[int]], int]:
    """Pack texts at the row width that costs the least computation.

    Per token, a layer takes 24 hidden² operations for its matrices and 4 width × hidden for its attention. Attention
    operations take twice as long as those of a matrix product (measured on a CPU: rows of 64 to 512 tokens, BERT-base's
    layers).

    Args:
        lengths: Tokens of each text.
        hidden: Hidden size of the encoder.

    Returns:
        The indices of the texts in each row, and the row width in tokens.
    """
    longest = max(lengths)
    widths = (-(-round(longest * factor) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE for factor in WIDTH_FACTORS)
    packings = {width: pack_rows(lengths, width) for width in widths}
    width = min(packings, key=lambda width: len(packings[width]) * width * (6 * hidden + 2 * width))
    return packings[width], width


def pack_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Pack texts into rows of `width` tokens by best-fit decreasing. Returns the indices of the texts in each row.

    The longest text comes first, and each text goes to the row in which it leaves the least room.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for text in np.argsort(np.asarray(lengths), kind="stable")[::-1].tolist():
        fit = bisect.bisect_left(free, (lengths[text], 0))
        if fit == len(free):
            rows.append([text])
            room, row = width, len(rows) - 1
        else:
            room, row = free.pop(fit)
            rows[row].append(text)
        bisect.insort(free, (room - lengths[text], row))
    return rows
