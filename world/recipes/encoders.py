"""Stage one: a vision tower learns cell by cell what is in the picture; then it is frozen and its features cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lotlip_data.world.recipes.optimise import Schedule, minimise, shuffled
from lotlip_data.world.recipes.perception import CellHeads
from lotlip_data.world.recipes.pictures import Pictures

FeaturesOf = Callable[[Tensor], Tensor]  # what the encoder reads -> features (B, L, D)


def teach(
    name: str,
    features_of: FeaturesOf,
    inputs_of: FeaturesOf,
    parameters: Sequence[nn.Parameter],
    heads: CellHeads,
    pictures: Pictures,
    schedule: Schedule,
    seed: int,
) -> None:
    """Train `parameters` until the heads can read each cell from the features; prints the heads' accuracies.

    `inputs_of` maps indices of pictures to what `features_of` reads: pixels for a tower, cached tower features for a
    Q-Former. The last 512 pictures are held out for the accuracies.
    """
    held_out = torch.arange(len(pictures) - 512, len(pictures))

    def loss_of(index: Tensor) -> Tensor:
        losses = heads.losses(features_of(inputs_of(index)), pictures, index)
        return torch.stack(list(losses.values())).sum()

    batches = shuffled(len(pictures) - 512, schedule.batch, seed)
    minimise(name, loss_of, batches, [*parameters, *heads.parameters()], schedule)
    with torch.no_grad():
        accuracies = heads.accuracies(features_of(inputs_of(held_out)), pictures, held_out)
    print(f"{name}: " + ", ".join(f"{what} {share:.2%}" for what, share in accuracies.items()), flush=True)


@torch.no_grad()
def cached(features_of: FeaturesOf, inputs_of: FeaturesOf, count: int) -> Tensor:
    """Features (count, L, D) of every picture, once."""
    return torch.cat([features_of(inputs_of(index)) for index in torch.arange(count).split(256)])
