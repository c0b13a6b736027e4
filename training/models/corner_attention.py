"""The corner tokens' attention mask (paper, Sec. 4.3).

    A(q, k) = 0  if q ≠ k and (k is a corner, or both q and k are in corners ∪ {[CLS]}),
              1  otherwise

so [CLS] and each corner see themselves and the text, the text sees the text and [CLS], and nobody but a corner itself
sees a corner. [CLS] stands at place 0 of its text and the m corners at 1…m. Several texts may share a row: they do not
see each other, and nobody sees padding.
"""

import torch
from torch import Tensor

PADDING = -1
"""The text of a token that belongs to none."""


def corner_mask(query: Tensor, key: Tensor, corner_tokens: int) -> Tensor:
    """A(q, k) as bool, True where q may see k, of the places of both in their text; their shapes are broadcast."""
    key_is_corner = (key >= 1) & (key <= corner_tokens)
    both_summarise = (query <= corner_tokens) & (key <= corner_tokens)
    return (query == key) | ~(key_is_corner | both_summarise)


def attention_mask(
    text: Tensor, place: Tensor, corner_tokens: int, *, eager: bool, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The 4-D mask [R, 1, L, L] for an encoder of transformers.

    `text` [R, L] says which text a token belongs to, or PADDING, and `place` [R, L] where in it. SDPA takes bool. Eager
    attention *adds* its mask, so a bool or integer one gives silently wrong features there: it gets `dtype`, 0 where
    seen and the lowest number where not.
    """
    together = (text[:, :, None] == text[:, None, :]) | (text[:, :, None] == PADDING)  # padding has to see something
    seen = corner_mask(place[:, :, None], place[:, None, :], corner_tokens) & together & (text != PADDING)[:, None, :]
    seen = seen[:, None]
    if not eager:
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
