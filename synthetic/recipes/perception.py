"""Training pictures as a captioner meets them: JPEG from the web, at whatever size, brought to 96 pixels.

Teach features to say what is in each of the nine cells, so that a frozen encoder holds all that a text needs.

Stage one: a vision tower learns cell by cell what is in the picture; then it is frozen and its features cached.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from lotlip_data.synthetic.recipes.optimize import Schedule, minimise, shuffled
from lotlip_data.synthetic.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, render, sample_scene

PIXELS = 96
SERVED_PIXELS = (96, 96, 128, 192)
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, as in the published checkpoints
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
IGNORE = -100

# What a cell can be asked; "cell" is the cell's own number, so that features carry positions.
CLASSES = {"occupied": 2, "colour": len(COLOURS), "shape": len(SHAPES), "size": len(SIZES)}


@dataclass(frozen=True)
class Pictures:
    """N scenes with their pictures as uint8 (N, 96, 96, 3) and what is true of each of the 9 cells."""

    scenes: tuple[Scene, ...]
    pixels: np.ndarray
    cells: dict[str, Tensor]  # each (N, 9); attributes of an empty cell are IGNORE
    backgrounds: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.scenes)

    def pixel_values(self, index: Sequence[int] | Tensor) -> Tensor:
        """Normalised float pictures (len(index), 3, 96, 96), as the image processor gives them."""
        batch = torch.from_numpy(self.pixels[np.asarray(index)]).float().div_(255)
        batch = (batch - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
        return batch.permute(0, 3, 1, 2).contiguous()


def draw_pictures(seeds: Sequence[int], sample: Callable[[int], Scene] = sample_scene) -> Pictures:
    """Render the scenes of these seeds and send each through a JPEG of quality 95."""
    scenes = tuple(map(sample, seeds))
    pixels = np.stack([np.asarray(_through_the_web(scene)) for scene in scenes])
    cells = {name: torch.full((len(scenes), len(PLACES)), IGNORE) for name in CLASSES}
    cells["occupied"][:] = 0
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            cell = PLACES.index(thing.place)
            cells["occupied"][row, cell] = 1
            cells["colour"][row, cell] = list(COLOURS).index(thing.colour)
            cells["shape"][row, cell] = SHAPES.index(thing.shape)
            cells["size"][row, cell] = list(SIZES).index(thing.size)
    backgrounds = torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes])
    return Pictures(scenes, pixels, cells, backgrounds)


def _through_the_web(scene: Scene) -> Image.Image:
    buffer = io.BytesIO()
    render(scene, SERVED_PIXELS[scene.seed % len(SERVED_PIXELS)]).save(buffer, "JPEG", quality=95)
    image = Image.open(buffer).convert("RGB")
    return image if image.width == PIXELS else image.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)


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
