"""Teach features to say what is in each of the nine cells, so that a frozen encoder holds all that a text needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lotlip_data.world.recipes.pictures import CLASSES, IGNORE, Pictures
from lotlip_data.world.scenes import BACKGROUNDS, PLACES

PATCHES = 6  # a side: 96 pixels in patches of 16


def cell_of_patch() -> Tensor:
    """(36,) the cell in which each patch lies: 2 × 2 patches a cell."""
    row, column = torch.arange(PATCHES**2) // PATCHES, torch.arange(PATCHES**2) % PATCHES
    return row // 2 * 3 + column // 2


class CellHeads(nn.Module):
    """Linear probes from features (B, L, D), each about the cell `cells[l]`; thrown away after training."""

    def __init__(self, hidden: int, cells: Tensor) -> None:
        super().__init__()
        self.cells = cells
        widths = {**CLASSES, "cell": len(PLACES), "background": len(BACKGROUNDS)}
        self.widths = widths
        self.all = nn.Linear(hidden, sum(widths.values()))

    def losses(self, features: Tensor, pictures: Pictures, index: Tensor) -> dict[str, Tensor]:
        logits, targets = self._ask(features, pictures, index)
        return {
            name: functional.cross_entropy(logits[name].flatten(0, 1), targets[name].flatten(), ignore_index=IGNORE)
            for name in logits
        }

    @torch.no_grad()
    def accuracies(self, features: Tensor, pictures: Pictures, index: Tensor) -> dict[str, float]:
        logits, targets = self._ask(features, pictures, index)
        known = {name: targets[name] != IGNORE for name in targets}
        return {name: (logits[name].argmax(-1) == targets[name])[known[name]].float().mean().item() for name in logits}

    def _ask(self, features: Tensor, pictures: Pictures, index: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        logits = dict(zip(self.widths, self.all(features).split(list(self.widths.values()), dim=-1), strict=True))
        targets = {name: pictures.cells[name][index][:, self.cells] for name in CLASSES}
        shape = targets["occupied"].shape
        targets["cell"] = self.cells.expand(shape)
        targets["background"] = pictures.backgrounds[index][:, None].expand(shape)
        return logits, targets
