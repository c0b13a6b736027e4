"""Zero-shot evaluation sets of synthetic scenes that no model was trained on.

The classes have the attributes that `lotlip_data.training.evaluation.evaluate` reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from lotlip_data.synthetic.caption_writers import WRITERS, long_text
from lotlip_data.synthetic.scenes import SPLITS, Scene, class_names, render, sample_scene, single_object_scene

TEMPLATES = ("{}", "{} stock photo", "{} vector image free download", "large {}", "small {}")


@dataclass(frozen=True)
class SceneTexts:
    """A retrieval set: scenes with one text each."""

    name: str
    scenes: tuple[Scene, ...]
    texts: tuple[str, ...]

    @property
    def image_of_text(self) -> range:
        """For each text, the index of its image."""
        return range(len(self.scenes))

    def images(self) -> Iterator[Image.Image]:
        return map(render, self.scenes)


@dataclass(frozen=True)
class SceneClasses:
    """A classification set: scenes of one object, whose class is its colour and shape."""

    name: str
    scenes: tuple[Scene, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES

    def images(self) -> Iterator[Image.Image]:
        return map(render, self.scenes)


def retrieval_sets(scenes: int = 500) -> list[SceneTexts]:
    """The sets `long` and `short` of so many scenes.

    `long` has a text of each scene by one of the three writers in turn. `short` has texts of the most prominent object.
    Scenes with equal short texts could not be told apart, so `short` keeps the first scene of each text.
    """
    all_scenes = tuple(map(sample_scene, SPLITS["evaluation"][:scenes]))
    long = tuple(long_text(scene, WRITERS[index % len(WRITERS)]) for index, scene in enumerate(all_scenes))
    scene_of_text: dict[str, Scene] = {}
    for scene in all_scenes:
        scene_of_text.setdefault(_short_text(scene), scene)
    return [
        SceneTexts("long", all_scenes, long),
        SceneTexts("short", tuple(scene_of_text.values()), tuple(scene_of_text)),
    ]


def classification_sets(per_class: int = 4) -> list[SceneClasses]:
    """The set `colour-shape`: the 64 classes, `per_class` scenes of each."""
    names = class_names()
    labels = tuple(label for label in range(len(names)) for _ in range(per_class))
    seeds = SPLITS["evaluation"][-len(labels) :]
    scenes = tuple(single_object_scene(seed, *names[label].split()) for seed, label in zip(seeds, labels, strict=True))
    return [SceneClasses("colour-shape", scenes, labels, tuple(names))]


def _short_text(scene: Scene) -> str:
    obj = next((obj for obj in scene.objects if obj.size == "large"), scene.objects[0])  # as in a raw text
    return f"{obj.size} {obj.colour} {obj.shape} on {scene.background} background"
