"""Crowded scenes of 3 to 6 objects, where details matter: the scenes of the reproduction study.

They are drawn and described like all scenes. This module adds near twins, which differ in one attribute of one object;
captioners' errors; raw texts with the noise of the web; and two writers. `person` describes the objects in another
order and in other words, as texts by people differ from those of captioners: no training of image and text sees its
texts, but the BERT of crowded scenes has learned to fill gaps in them. `detailed` writes 12 to 20 sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lotlip_data.synthetic.caption_writers import (
    NAMING_FORMS,
    NUMBERS,
    WRITERS,
    alt_text,
    long_text,
    palette,
    sizes_sentence,
)
from lotlip_data.synthetic.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, SceneObject

MIN_OBJECTS, MAX_OBJECTS = 3, 6
ATTRIBUTES: dict[str, Sequence[str]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "place": PLACES,
}


@dataclass(frozen=True)
class ErrorRates:
    """Shares of a scene's objects that a captioner describes wrongly or omits."""

    wrong: float
    """One attribute is wrong."""
    omitted: float
    """The object is missing."""


CAPTIONER_ERRORS = {
    "instructblip": ErrorRates(wrong=0.12, omitted=0.15),
    "llava": ErrorRates(wrong=0.10, omitted=0.08),
    "sharegpt4v": ErrorRates(wrong=0.05, omitted=0.03),
}
"""Chosen, not measured: the order follows the paper's Table 9, the sizes follow reports on real captioners."""


@dataclass(frozen=True)
class WebNoise:
    """Shares of the raw texts that do not describe the picture. The other texts name the salient object."""

    wrong: float
    """The text names a colour and a shape that no object of the picture has."""
    other: float
    """The text belongs to another picture."""
    nothing: float
    """The text names no object and no background."""


WEB_NOISE = WebNoise(wrong=0.10, other=0.15, nothing=0.15)
"""Chosen, not measured."""
_EMPTY_FORMS = {
    "IMG_{number}.JPG": 3,
    "stock photo #{number}": 2,
    "vector image free download": 2,
    "Free shipping": 1,
    "item {number}": 1,
}
_OTHER_SCENES = 2**32
"""Added to a scene's seed, this is the seed of the other picture. No scene of a split has such a seed."""


def crowded_scene(seed: int) -> Scene:
    """The scene of a seed. Background, number of objects (3 to 6), cells and attributes are drawn uniformly."""
    rng = np.random.default_rng([seed, 3])
    background = _pick(rng, tuple(BACKGROUNDS))
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    cells = sorted(rng.choice(len(PLACES), size=count, replace=False).tolist())
    objects = tuple(
        SceneObject(
            colour=_pick(rng, tuple(COLOURS)),
            shape=_pick(rng, SHAPES),
            size=_pick(rng, tuple(SIZES)),
            place=PLACES[cell],
        )
        for cell in cells
    )
    return Scene(seed, background, objects)


def near_twins(scene: Scene, seeds: Sequence[int]) -> list[Scene]:
    """One scene per seed, all different, each of which differs from `scene` in exactly one attribute of one object.

    A twin's picture has the jitter of its own seed, so it does not equal the picture of `scene` outside that object.
    """
    rng = np.random.default_rng([scene.seed, 4])
    twins: dict[tuple[SceneObject, ...], Scene] = {}
    while len(twins) < len(seeds):
        objects = _changed(scene.objects, int(rng.integers(len(scene.objects))), rng)
        twins.setdefault(objects, replace(scene, seed=seeds[len(twins)], objects=objects))
    return list(twins.values())


def misread(scene: Scene, writer: str, errors: ErrorRates | None = None) -> Scene:
    """The scene as the captioner `writer` describes it: with errors, which are the same in every call.

    Args:
        scene: The scene.
        writer: The captioner. Errors of different captioners are independent.
        errors: How often it errs. Default: its rates in CAPTIONER_ERRORS.
    """
    errors = errors or CAPTIONER_ERRORS[writer]
    rng = np.random.default_rng([scene.seed, 5, WRITERS.index(writer)])
    objects = scene.objects
    for index in range(len(objects)):
        if rng.random() < errors.wrong:
            objects = _changed(objects, index, rng, sort=False)
    kept = [obj for obj in objects if rng.random() >= errors.omitted]
    return replace(scene, objects=_in_reading_order(kept or objects))


def web_text(scene: Scene, noise: WebNoise = WEB_NOISE) -> str:
    """A raw text of the scene with the noise of the web, the same in every call."""
    rng = np.random.default_rng([scene.seed, 6])
    kinds = (noise.wrong, noise.other, noise.nothing)
    kind = int(np.searchsorted(np.cumsum(kinds), rng.random(), side="right"))
    if kind == 1:
        scene = crowded_scene(scene.seed + _OTHER_SCENES)
    obj = salient_object(scene)
    if kind == 0:
        colours = [colour for colour in COLOURS if all(each.colour != colour for each in scene.objects)]
        shapes = [shape for shape in SHAPES if all(each.shape != shape for each in scene.objects)]
        obj = replace(obj, colour=_pick(rng, colours), shape=_pick(rng, shapes))
    return alt_text(obj, scene.background, rng, _EMPTY_FORMS if kind == 2 else NAMING_FORMS)


def crowded_text(scene: Scene, writer: str) -> str:
    """The text of `person` (4 to 7 sentences), of `detailed` (12 to 20) or of a captioner's writer."""
    if writer == "person":
        return _joined(_person(scene))
    if writer == "detailed":
        return _joined(_detailed(scene))
    return long_text(scene, writer)


def salient_object(scene: Scene) -> SceneObject:
    """The object that raw and short texts name: the first large one, else the first."""
    return next((obj for obj in scene.objects if obj.size == "large"), scene.objects[0])


def short_text(scene: Scene) -> str:
    """A text of the salient object and the background; it names no other object."""
    obj = salient_object(scene)
    return f"{obj.size} {obj.colour} {obj.shape} at the {obj.place} on {scene.background} background"


def _person(scene: Scene) -> list[str]:
    first = salient_object(scene)
    others = [obj for obj in scene.objects if obj != first]
    sentences = [f"The {first.shape} at the {first.place} is {first.size} and {first.colour}"]
    sentences += [f"At the {obj.place} you see a {obj.shape}, {obj.size} and {obj.colour}" for obj in others]
    return [*sentences, f"Behind them all is {scene.background}"]


def _detailed(scene: Scene) -> list[str]:
    sentences = [
        f"This is a flat picture with a plain {scene.background} background",
        f"It shows {NUMBERS[len(scene.objects)]} objects in all",
    ]
    for obj in scene.objects:
        sentences.append(f"In the {obj.place} of the picture there is a {obj.size} {obj.shape}")
        sentences.append(f"The {obj.shape} that stands there is painted in {obj.colour}")
    for row, name in enumerate(("top", "middle", "bottom")):
        count = sum(PLACES.index(obj.place) // 3 == row for obj in scene.objects)
        sentences.append(f"In the {name} row of the picture {NUMBERS[count]} of the places are occupied")
    return [*sentences, sizes_sentence(scene), f"The overall palette of the picture feels {palette(scene)}"]


def _joined(sentences: list[str]) -> str:
    return " ".join(f"{sentence}." for sentence in sentences)


def _changed(
    objects: tuple[SceneObject, ...], index: int, rng: np.random.Generator, sort: bool = True
) -> tuple[SceneObject, ...]:
    """`objects` with a new value of one random attribute of the object at `index`."""
    obj = objects[index]
    attribute = _pick(rng, tuple(ATTRIBUTES))
    taken = {other.place for other in objects} if attribute == "place" else {getattr(obj, attribute)}
    free = [value for value in ATTRIBUTES[attribute] if value not in taken]
    change: dict[str, Any] = {attribute: _pick(rng, free)}
    changed = (*objects[:index], replace(obj, **change), *objects[index + 1 :])
    return _in_reading_order(changed) if sort else changed


def _in_reading_order(objects: Sequence[SceneObject]) -> tuple[SceneObject, ...]:
    return tuple(sorted(objects, key=lambda obj: PLACES.index(obj.place)))


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]
