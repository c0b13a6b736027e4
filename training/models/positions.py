"""Tables of position embeddings for other sizes of images and for longer texts.

Shapes: P positions, D width of an embedding.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Stretch = Literal["longclip", "linear"]
"""How a text tower's table of positions is made longer: see `stretch_positions`."""

KEPT_POSITIONS = 20
"""First positions that Long-CLIP keeps as they are, since most texts of CLIP's pre-training end before (Long-CLIP, Sec.
3.2, arXiv 2403.15378)."""


def stretch_positions(table: Tensor, length: int, rule: Stretch) -> Tensor:
    """A longer table of text positions.

    Args:
        table: [P, D].
        length: Positions of the result, more than P.
        rule: `longclip` keeps the first 20 positions and interpolates the others linearly, as Long-CLIP does (248
            positions of 77: every further one becomes four). The last ones lie beyond the old table, on the line
            through its last two rows. `linear` interpolates the whole table; the first and the last row stay.

    Returns:
        [length, D].

    Raises:
        ValueError: The table has too few positions for the rule.
    """
    positions = len(table)
    kept = KEPT_POSITIONS if rule == "longclip" else 0
    if positions < kept + 2:
        raise ValueError(
            f"stretch: {rule} keeps {kept} positions and stretches the others, but the text tower has {positions}"
        )
    index = torch.arange(length - kept, dtype=torch.float64)
    old_index = index * ((positions - kept) / (length - kept) if kept else (positions - 1) / (length - 1)) + kept
    left = old_index.floor().clamp(max=positions - 2)
    share = (old_index - left)[:, None]
    rows = table.double()
    stretched = rows[left.long()] * (1 - share) + rows[left.long() + 1] * share
    return torch.cat([table[:kept], stretched.to(table.dtype)])


def resize_positions(table: Tensor, old_grid: int, grid: int) -> Tensor:
    """Resize the position embeddings of images to grid × grid patches, as timm does (bicubic, antialiased).

    Args:
        table: [1, P + old_grid², D], P prefix tokens (the class token) before the patches.
        old_grid: Patches per side in `table`.
        grid: Patches per side in the result.

    Returns:
        [1, P + grid², D]; the prefix tokens are unchanged.
    """
    prefix, patches = table.split([table.shape[1] - old_grid**2, old_grid**2], dim=1)
    square = patches.float().unflatten(1, (old_grid, old_grid)).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
    return torch.cat([prefix, square.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)
