"""Training pictures, and the first training stage: an encoder learns what is in each of the nine cells.

The pictures look like downloaded images: JPEG files of several sizes, resized to 96 pixels. An encoder is trained until
linear probes read the content of each cell from its features. Then it is frozen and its features are cached: they have
everything that a text needs.
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
IGNORE = -100  # a label without a loss
HELD_OUT = 512  # pictures

# Attributes of a cell, with their number of classes.
CLASSES = {"occupied": 2, "colour": len(COLOURS), "shape": len(SHAPES), "size": len(SIZES)}


@dataclass(frozen=True)
class Pictures:
    """N scenes with their pictures and the labels of their 9 cells."""

    scenes: tuple[Scene, ...]
    pixels: np.ndarray
    """(N, 96, 96, 3), uint8."""
    cells: dict[str, Tensor]
    """For each attribute of CLASSES the labels (N, 9); attributes of an empty cell are IGNORE."""
    backgrounds: Tensor
    """(N,) labels of the background colours."""

    def __len__(self) -> int:
        return len(self.scenes)

    def pixel_values(self, index: Sequence[int] | Tensor) -> Tensor:
        """Normalised pictures (len(index), 3, 96, 96), float32, as the image processor returns them."""
        batch = torch.from_numpy(self.pixels[np.asarray(index)]).float().div_(255)
        batch = (batch - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
        return batch.permute(0, 3, 1, 2).contiguous()


def draw_pictures(seeds: Sequence[int], sample: Callable[[int], Scene] = sample_scene) -> Pictures:
    """Render the scenes of the seeds and compress each as JPEG at quality 95."""
    scenes = tuple(map(sample, seeds))
    pixels = np.stack([np.asarray(_as_downloaded(scene)) for scene in scenes])
    cells = {name: torch.full((len(scenes), len(PLACES)), IGNORE) for name in CLASSES}
    cells["occupied"][:] = 0
    for row, scene in enumerate(scenes):
        for obj in scene.objects:
            cell = PLACES.index(obj.place)
            cells["occupied"][row, cell] = 1
            cells["colour"][row, cell] = list(COLOURS).index(obj.colour)
            cells["shape"][row, cell] = SHAPES.index(obj.shape)
            cells["size"][row, cell] = list(SIZES).index(obj.size)
    backgrounds = torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes])
    return Pictures(scenes, pixels, cells, backgrounds)


def _as_downloaded(scene: Scene) -> Image.Image:
    buffer = io.BytesIO()
    render(scene, SERVED_PIXELS[scene.seed % len(SERVED_PIXELS)]).save(buffer, "JPEG", quality=95)
    image = Image.open(buffer).convert("RGB")
    return image if image.width == PIXELS else image.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)


PATCHES = 6  # per side: 96 pixels in patches of 16


def cell_of_patch() -> Tensor:
    """(36,) the cell of each patch; a cell has 2 × 2 patches."""
    row, column = torch.arange(PATCHES**2) // PATCHES, torch.arange(PATCHES**2) % PATCHES
    return row // 2 * 3 + column // 2


class CellProbes(nn.Module):
    """Linear probes from features (B, L, D) to the attributes of cells; discarded after training.

    The features at position l describe the cell `cells[l]`. They also predict the cell's number, so that features carry
    positions, and the background.
    """

    def __init__(self, hidden: int, cells: Tensor) -> None:
        super().__init__()
        self.cells = cells
        self.widths = {**CLASSES, "cell": len(PLACES), "background": len(BACKGROUNDS)}
        self.linear = nn.Linear(hidden, sum(self.widths.values()))

    def losses(self, features: Tensor, pictures: Pictures, index: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of each attribute. `index`: the pictures of the batch."""
        logits, targets = self._predict(features, pictures, index)
        return {
            name: functional.cross_entropy(logits[name].flatten(0, 1), targets[name].flatten(), ignore_index=IGNORE)
            for name in logits
        }

    @torch.no_grad()
    def accuracies(self, features: Tensor, pictures: Pictures, index: Tensor) -> dict[str, float]:
        """The share of cells whose label is predicted correctly, per attribute."""
        logits, targets = self._predict(features, pictures, index)
        known = {name: targets[name] != IGNORE for name in targets}
        return {name: (logits[name].argmax(-1) == targets[name])[known[name]].float().mean().item() for name in logits}

    def _predict(
        self, features: Tensor, pictures: Pictures, index: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits and labels per attribute."""
        logits = dict(zip(self.widths, self.linear(features).split(list(self.widths.values()), dim=-1), strict=True))
        targets = {name: pictures.cells[name][index][:, self.cells] for name in CLASSES}
        shape = targets["occupied"].shape
        targets["cell"] = self.cells.expand(shape)
        targets["background"] = pictures.backgrounds[index][:, None].expand(shape)
        return logits, targets


TensorFunction = Callable[[Tensor], Tensor]


def train_encoder(
    name: str,
    features_of: TensorFunction,
    inputs_of: TensorFunction,
    parameters: Sequence[nn.Parameter],
    probes: CellProbes,
    pictures: Pictures,
    schedule: Schedule,
    seed: int,
) -> None:
    """Train an encoder together with linear probes, and print the probes' accuracies on held-out pictures.

    Args:
        name: Name of the stage in the printed progress.
        features_of: The encoder: maps its inputs to features (B, L, D).
        inputs_of: Maps indices of pictures to the encoder's inputs: pixels for a tower, cached features for a Q-Former.
        parameters: The encoder's parameters.
        probes: The probes, trained as well.
        pictures: Training pictures; the last HELD_OUT ones are not trained on.
        schedule: Number of steps and learning rate.
        seed: Seed of the order of the pictures.
    """
    held_out = torch.arange(len(pictures) - HELD_OUT, len(pictures))

    def loss_of(index: Tensor) -> Tensor:
        losses = probes.losses(features_of(inputs_of(index)), pictures, index)
        return torch.stack(list(losses.values())).sum()

    batches = shuffled(len(pictures) - HELD_OUT, schedule.batch, seed)
    minimise(name, loss_of, batches, [*parameters, *probes.parameters()], schedule)
    with torch.no_grad():
        accuracies = probes.accuracies(features_of(inputs_of(held_out)), pictures, held_out)
    print(f"{name}: " + ", ".join(f"{attribute} {share:.2%}" for attribute, share in accuracies.items()), flush=True)


@torch.no_grad()
def encode_all(features_of: TensorFunction, inputs_of: TensorFunction, count: int) -> Tensor:
    """Features (count, L, D) of the first `count` pictures."""
    return torch.cat([features_of(inputs_of(index)) for index in torch.arange(count).split(256)])
