"""Where texts stand in rows of tokens: one padded text per row, or several texts side by side (see packing.py).

A text's summary token and its m corner tokens stand together: at the start of a text of BERT's, at the end of one of
CLIP's. A token's rank says which it is: 0 for the summary token, 1…m for the corners, more for the text.

Shapes: N texts, R rows, L tokens per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lotlip_data.training.models.corner_attention import PADDING


class RowLayout(NamedTuple):
    """The places of N texts in R rows, as int64 tensors."""

    text: Tensor
    """[R, L] index of the text that a token belongs to, or PADDING."""
    position: Tensor
    """[R, L] position of a token in its text. Padding is all at 0: a row may have more of it than the encoder has
    positions."""
    rank: Tensor
    """[R, L] rank of a token in its text."""
    summary: Tensor
    """[N] index of each text's summary token in the R·L tokens, in the order of the texts."""

    def part(self, rows: slice, texts: slice) -> "RowLayout":
        """The layout of some rows alone, and of the texts that they hold."""
        first_token = rows.start * self.text.shape[1]
        return RowLayout(self.text[rows], self.position[rows], self.rank[rows], self.summary[texts] - first_token)

    def to(self, device: torch.device) -> "RowLayout":
        """The layout on a device."""
        return RowLayout(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True)
class TextPlacement:
    """Where the summary of a text stands, in texts of one tower."""

    corner_tokens: int
    """m."""
    summary_is_last: bool
    """The summary token is the last token of the text, and the corners stand behind it, at its position. Else it is the
    first one, and the corners take the next positions."""

    def rows(
        self, lengths: Sequence[Sequence[int]], width: int, moves: Sequence[Sequence[int]] | None = None
    ) -> RowLayout:
        """The layout of rows of texts.

        Texts are numbered from 0 in each row anew in `text`, and in the order of the rows in `summary`.

        Args:
            lengths: The lengths of the texts of each row, corners included.
            width: Tokens per row.
            moves: By how many positions the words of each text are moved back. The first token, and the corners that
                follow it, keep theirs. Default: none.
        """
        shape = (len(lengths), width)
        text, position = np.full(shape, PADDING, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        rank, summary = np.zeros(shape, dtype=np.int64), list[int]()
        for row, row_lengths in enumerate(lengths):
            start = 0
            for number, length in enumerate(row_lengths):
                span, index = slice(start, start + length), np.arange(length)
                first = length - 1 - self.corner_tokens if self.summary_is_last else 0
                text[row, span] = number
                position[row, span] = np.minimum(index, first) if self.summary_is_last else index
                if moves is not None:
                    words = slice(start + 1 + (0 if self.summary_is_last else self.corner_tokens), span.stop)
                    position[row, words] += moves[row][number]
                rank[row, span] = np.where(index < first, self.corner_tokens + 1, index - first)
                summary.append(row * width + start + first)
                start = span.stop
        return RowLayout(*map(torch.from_numpy, (text, position, rank, np.array(summary, dtype=np.int64))))

    def padded(self, is_text: Tensor, summary: Tensor) -> RowLayout:
        """The layout of one text per row.

        Args:
            is_text: bool [R, L], False for padding.
            summary: [R] index of the summary token in its row.
        """
        index = torch.arange(is_text.shape[1], device=is_text.device).expand_as(is_text)
        first = summary[:, None]
        row_start = torch.arange(is_text.shape[0], device=is_text.device) * is_text.shape[1]
        return RowLayout(
            text=torch.where(is_text, 0, PADDING),
            position=torch.minimum(index, first) if self.summary_is_last else index,
            rank=torch.where(index < first, self.corner_tokens + 1, index - first),
            summary=row_start + summary,
        )
