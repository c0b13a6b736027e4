"""The attention mask of the corner tokens (paper, Sec. 4.3).

    A(q, k) = 0  if q ≠ k and (k is a corner, or both q and k are in corners ∪ {[CLS]}),
              1  otherwise

[CLS] and each corner see themselves and the text, the text sees the text and [CLS], and nothing but a corner itself
sees a corner. The rank of a token says which it is: 0 for [CLS], 1…m for the corners, more for the text. In other
families of encoders another token stands for [CLS]: see text_families.py. A causal encoder's tokens see no later one
either. Several texts may share a row: they do not see each other, and nothing sees padding.

Shapes: R rows, L tokens per row.
"""

import torch
from torch import Tensor

PADDING = -1
"""The text index of a token that belongs to no text."""


def corner_mask(query: Tensor, key: Tensor, corner_tokens: int) -> Tensor:
    """A(q, k) as bool, True where q sees k.

    Args:
        query: Ranks of the query tokens. Broadcast with `key`.
        key: Ranks of the key tokens.
        corner_tokens: m.
    """
    key_is_corner = (key >= 1) & (key <= corner_tokens)
    both_summarize = (query <= corner_tokens) & (key <= corner_tokens)
    return (query == key) | ~(key_is_corner | both_summarize)


def attention_mask(
    text: Tensor,
    rank: Tensor,
    corner_tokens: int,
    *,
    eager: bool,
    causal: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The 4-D mask [R, 1, L, L] for an encoder of transformers.

    Args:
        text: [R, L] index of the text that a token belongs to, or PADDING.
        rank: [R, L] rank of a token in its text.
        corner_tokens: m.
        eager: Whether the encoder uses eager attention, which *adds* its mask: a bool or integer mask silently gives
            wrong features there. Off: SDPA, which takes a bool mask.
        causal: Whether a token sees only those before it, and itself.
        dtype: Type of the eager mask.

    Returns:
        For SDPA bool, True where the query sees the key. For eager attention `dtype`: 0 where it does, and the lowest
        number elsewhere.
    """
    # Padding queries see every text: a query that sees nothing has no softmax.
    same_text = (text[:, :, None] == text[:, None, :]) | (text[:, :, None] == PADDING)
    key_is_token = (text != PADDING)[:, None, :]
    visible = corner_mask(rank[:, :, None], rank[:, None, :], corner_tokens) & same_text & key_is_token
    visible = (visible.tril() if causal else visible)[:, None]
    if not eager:
        return visible
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)
