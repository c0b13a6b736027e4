"""Crowded scenes of 3 to 6 things, where details matter: the world of the reproduction study.

They are drawn and described as all scenes are. What is new here: near twins, which differ in one attribute of one
thing; a captioner's misreadings; two more writers. `person` tells things in an order and in words of its own, as
people's texts differ from captioners', and is never trained on; `detailed` takes 12 to 20 sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lotlip_data.synthetic.caption_writers import NUMBERS, WRITERS, long_text, palette_of, sizes_of
from lotlip_data.synthetic.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, Thing

FEWEST, MOST = 3, 6
ATTRIBUTES: dict[str, Sequence[str]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "place": PLACES,
}


@dataclass(frozen=True)
class Eyesight:
    """How often a captioner gets a thing wrong: one of its attributes, or leaves it out."""

    wrong: float
    left_out: float


EYESIGHT = {
    "instructblip": Eyesight(wrong=0.12, left_out=0.15),
    "llava": Eyesight(wrong=0.10, left_out=0.08),
    "sharegpt4v": Eyesight(wrong=0.05, left_out=0.03),
}
"""Chosen, not measured: the order that the paper's Table 9 suggests, at rates that real captioners' reports have."""


def crowded_scene(seed: int) -> Scene:
    """The scene of this seed: background, number of things, cells and attributes are all uniform."""
    rng = np.random.default_rng([seed, 3])
    background = _pick(rng, tuple(BACKGROUNDS))
    count = int(rng.integers(FEWEST, MOST + 1))
    cells = sorted(rng.choice(len(PLACES), size=count, replace=False).tolist())
    things = tuple(
        Thing(
            colour=_pick(rng, tuple(COLOURS)),
            shape=_pick(rng, SHAPES),
            size=_pick(rng, tuple(SIZES)),
            place=PLACES[cell],
        )
        for cell in cells
    )
    return Scene(seed, background, things)


def near_twins(scene: Scene, seeds: Sequence[int]) -> list[Scene]:
    """A scene for each seed, all different, that differs from `scene` in exactly one attribute of one thing.

    A twin's picture is drawn with the jitter of its own seed, so that it is not the same picture but for one spot.
    """
    rng = np.random.default_rng([scene.seed, 4])
    found: dict[tuple[Thing, ...], Scene] = {}
    while len(found) < len(seeds):
        things = _changed(scene.things, int(rng.integers(len(scene.things))), rng)
        found.setdefault(things, replace(scene, seed=seeds[len(found)], things=things))
    return list(found.values())


def misread(scene: Scene, writer: str) -> Scene:
    """The scene as that captioner sees it, with its errors; always the same ones."""
    eyesight = EYESIGHT[writer]
    rng = np.random.default_rng([scene.seed, 5, WRITERS.index(writer)])
    things = scene.things
    for index in range(len(things)):
        if rng.random() < eyesight.wrong:
            things = _changed(things, index, rng, sort=False)
    kept = [thing for thing in things if rng.random() >= eyesight.left_out]
    return replace(scene, things=_in_order(kept or things))


def crowded_text(scene: Scene, writer: str) -> str:
    """The text of `person` (4 to 7 sentences), of `detailed` (12 to 20) or of one of the captioners' writers."""
    if writer == "person":
        return _joined(_person(scene))
    if writer == "detailed":
        return _joined(_detailed(scene))
    return long_text(scene, writer)


def salient(scene: Scene) -> Thing:
    """What raw and short texts name: the first large thing, else the first."""
    return next((thing for thing in scene.things if thing.size == "large"), scene.things[0])


def short_text(scene: Scene) -> str:
    """The salient thing and nothing else of the scene but its background."""
    thing = salient(scene)
    return f"{thing.size} {thing.colour} {thing.shape} at the {thing.place} on {scene.background} background"


def _person(scene: Scene) -> list[str]:
    first = salient(scene)
    others = [thing for thing in scene.things if thing != first]
    sentences = [f"The {first.shape} at the {first.place} is {first.size} and {first.colour}"]
    sentences += [f"At the {thing.place} you see a {thing.shape}, {thing.size} and {thing.colour}" for thing in others]
    return [*sentences, f"Behind them all is {scene.background}"]


def _detailed(scene: Scene) -> list[str]:
    sentences = [
        f"This is a flat picture with a plain {scene.background} background",
        f"It shows {NUMBERS[len(scene.things)]} objects in all",
    ]
    for thing in scene.things:
        sentences.append(f"In the {thing.place} of the picture there is a {thing.size} {thing.shape}")
        sentences.append(f"The {thing.shape} that stands there is painted in {thing.colour}")
    for row, name in enumerate(("top", "middle", "bottom")):
        count = sum(PLACES.index(thing.place) // 3 == row for thing in scene.things)
        sentences.append(f"In the {name} row of the picture {NUMBERS[count]} of the places are occupied")
    return [*sentences, sizes_of(scene), f"The overall palette of the picture feels {palette_of(scene)}"]


def _joined(sentences: list[str]) -> str:
    return " ".join(f"{sentence}." for sentence in sentences)


def _changed(things: tuple[Thing, ...], index: int, rng: np.random.Generator, sort: bool = True) -> tuple[Thing, ...]:
    """`things` with another value of one attribute of one of them."""
    thing = things[index]
    name = _pick(rng, tuple(ATTRIBUTES))
    taken = {other.place for other in things} if name == "place" else {getattr(thing, name)}
    change: dict[str, Any] = {name: _pick(rng, [value for value in ATTRIBUTES[name] if value not in taken])}
    changed = (*things[:index], replace(thing, **change), *things[index + 1 :])
    return _in_order(changed) if sort else changed


def _in_order(things: Sequence[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda thing: PLACES.index(thing.place)))


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]
