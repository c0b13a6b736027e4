"""The corner tokens' attention mask (paper, Sec. 4.3).

    A(q, k) = 0  if q ≠ k and (k is a corner, or both q and k are in corners ∪ {[CLS]}),
              1  otherwise

so [CLS] and each corner see themselves and the text, the text sees the text and [CLS], and nobody but a corner itself
sees a corner. [CLS] stands at position 0 and the m corners at 1…m. Keys that are padding are masked for everyone.
"""

import torch
from torch import Tensor


def corner_mask(length: int, corner_tokens: int, device: torch.device | None = None) -> Tensor:
    """A(q, k) as bool [length, length], True where the query q may see the key k."""
    position = torch.arange(length, device=device)
    query, key = position[:, None], position[None, :]
    key_is_corner = (key >= 1) & (key <= corner_tokens)
    both_summarise = (query <= corner_tokens) & (key <= corner_tokens)
    return (query == key) | ~(key_is_corner | both_summarise)


def attention_mask(real: Tensor, corner_tokens: int, *, eager: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """The 4-D mask [N, 1, length, length] for an encoder of transformers.

    `real` is bool [N, length], False at padding. SDPA takes bool. Eager attention *adds* its mask, so a bool or integer
    one gives silently wrong features there: it gets `dtype`, 0 where seen and the lowest number where not.
    """
    length = real.shape[1]
    seen = corner_mask(length, corner_tokens, real.device)[None, None] & real[:, None, None, :]
    if not eager:
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill(~seen, torch.finfo(dtype).min)
