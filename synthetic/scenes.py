"""Scenes of coloured shapes on a 3×3 grid, and how they are drawn.

A scene and its picture are pure functions of the seed: equal seeds give equal pixels. The picture adds jitter of
position, size, colour and angle that the scene does not record, so a model cannot memorise the pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (245, 225, 40),
    "green": (40, 160, 60),
    "cyan": (50, 215, 225),
    "blue": (35, 70, 215),
    "purple": (125, 40, 165),
    "pink": (250, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
SIZES: dict[str, float] = {"large": 0.42, "small": 0.24}  # radius as a fraction of the cell's side
PLACES = (
    "top left",
    "top centre",
    "top right",
    "middle left",
    "centre",
    "middle right",
    "bottom left",
    "bottom centre",
    "bottom right",
)
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "black": (14, 14, 14),
    "gray": (128, 128, 128),
    "brown": (92, 58, 32),
    "beige": (226, 208, 170),
}
MAX_OBJECTS = 4

# Disjoint seed ranges, so that no model is tested on a scene that it was trained on.
SPLITS: dict[str, range] = {
    "captioner_train": range(1_000_000),
    "captioner_test": range(1_000_000, 1_100_000),
    "tower_train": range(2_000_000, 3_000_000),
    "images": range(3_000_000, 4_000_000),  # served in the demo: LoTLIP is trained on these
    "evaluation": range(4_000_000, 4_100_000),
    # Crowded scenes, in blocks per seed of a study: see pipeline/study/world.py.
    "study_scores": range(10_000_000, 20_000_000),
    "study": range(20_000_000, 60_000_000),
}


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape. `place` is the name of its grid cell, one of `PLACES`."""

    colour: str
    shape: str
    size: str
    place: str


@dataclass(frozen=True)
class Scene:
    """Objects in different cells, in reading order, on a plain background."""

    seed: int
    background: str
    objects: tuple[SceneObject, ...]


def sample_scene(seed: int) -> Scene:
    """The scene of a seed. Background, number of objects (1 to 4), cells and attributes are drawn uniformly."""
    rng = np.random.default_rng(seed)
    background = _pick(rng, BACKGROUNDS)
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    cells = sorted(rng.choice(len(PLACES), size=count, replace=False).tolist())
    objects = tuple(
        SceneObject(colour=_pick(rng, COLOURS), shape=_pick(rng, SHAPES), size=_pick(rng, SIZES), place=PLACES[cell])
        for cell in cells
    )
    return Scene(seed, background, objects)


def single_object_scene(seed: int, colour: str, shape: str) -> Scene:
    """A scene of one object of the given colour and shape, which are its class in zero-shot classification.

    Raises ValueError if there is no such colour or shape.
    """
    if colour not in COLOURS or shape not in SHAPES:
        raise ValueError(f"no class {colour!r} {shape!r}: colours are {list(COLOURS)}, shapes are {list(SHAPES)}")
    scene = sample_scene(seed)
    return replace(scene, objects=(replace(scene.objects[0], colour=colour, shape=shape),))


def class_names() -> list[str]:
    """The 64 classes "<colour> <shape>" of single-object scenes, ordered by colour, then shape."""
    return [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def render(scene: Scene, pixels: int = 96) -> Image.Image:
    """Draw the scene as an RGB image of `pixels` × `pixels`. The jitter depends on the scene's seed alone."""
    rng = np.random.default_rng(
        [scene.seed, 1]
    )  # a separate stream: drawing does not depend on how the scene was sampled
    side = 3 * pixels  # drawn three times as large and averaged down, which smooths the edges
    canvas = Image.new("RGB", (side, side), _shade(rng, BACKGROUNDS[scene.background]))
    draw = ImageDraw.Draw(canvas)
    ground = canvas.getpixel((0, 0))
    cell = side / 3
    for obj in scene.objects:
        row, column = divmod(PLACES.index(obj.place), 3)
        radius = cell * SIZES[obj.size] * rng.uniform(0.92, 1.08)
        slack = max(0.0, min(0.06 * cell, cell / 2 - radius))
        centre_x = (column + 0.5) * cell + rng.uniform(-slack, slack)
        centre_y = (row + 0.5) * cell + rng.uniform(-slack, slack)
        angle = math.radians(rng.uniform(-6, 6))
        _draw_shape(draw, obj.shape, (centre_x, centre_y), radius, angle, _shade(rng, COLOURS[obj.colour]), ground)
    return canvas.resize((pixels, pixels), Image.Resampling.BOX)


def _pick(rng: np.random.Generator, names: dict[str, tuple[int, int, int]] | dict[str, float] | tuple[str, ...]) -> str:
    return list(names)[int(rng.integers(len(names)))]


def _shade(rng: np.random.Generator, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(channel + rng.integers(-7, 8), 0, 255)) for channel in rgb)
    return red, green, blue


# Corners of each shape's outline in the unit disc; y points down.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0.0, -1.0), (0.75, 0.0), (0.0, 1.0), (-0.75, 0.0)],
    "star": [
        (r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5)) for k in range(10) for r in [(1.0, 0.42)[k % 2]]
    ],
    "cross": [
        *[(-0.32, -0.95), (0.32, -0.95), (0.32, -0.32), (0.95, -0.32), (0.95, 0.32), (0.32, 0.32)],
        *[(0.32, 0.95), (-0.32, 0.95), (-0.32, 0.32), (-0.95, 0.32), (-0.95, -0.32), (-0.32, -0.32)],
    ],
    "heart": [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in np.linspace(0, 2 * math.pi, 40, endpoint=False).tolist()
    ],
}


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    angle: float,
    colour: tuple[int, int, int],
    ground: object,
) -> None:
    x, y = centre
    if shape in _OUTLINES:
        cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
        draw.polygon([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in _OUTLINES[shape]], fill=colour)
        return
    outer = 0.92 * radius
    draw.ellipse((x - outer, y - outer, x + outer, y + outer), fill=colour)
    if shape == "ring":
        inner = 0.5 * radius
        draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=ground)  # type: ignore[arg-type]
