"""Training pictures as a captioner meets them: JPEG from the web, at whatever size, brought to 96 pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lotlip_data.world.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, render, sample_scene

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
