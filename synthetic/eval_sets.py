"""What a model trained on this world is evaluated on: scenes that nothing was trained on.

The classes have the attributes that `lotlip_data.training.evaluation.evaluate` asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from lotlip_data.synthetic.caption_writers import WRITERS, long_text
from lotlip_data.synthetic.scenes import SPLITS, Scene, class_names, render, sample_scene, single_thing_scene

TEMPLATES = ("{}", "{} stock photo", "{} vector image free download", "large {}", "small {}")


@dataclass(frozen=True)
class SceneTexts:
    """One text of each scene, to be found among all."""

    name: str
    scenes: tuple[Scene, ...]
    texts: tuple[str, ...]

    @property
    def image_of_text(self) -> range:
        return range(len(self.scenes))

    def images(self) -> Iterator[Image.Image]:
        return map(render, self.scenes)


@dataclass(frozen=True)
class SceneClasses:
    """Scenes of one thing, to be named by its colour and shape."""

    name: str
    scenes: tuple[Scene, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES

    def images(self) -> Iterator[Image.Image]:
        return map(render, self.scenes)


def retrieval_sets(scenes: int = 500) -> list[SceneTexts]:
    """`long`: each scene as one of the three writers tells it, in turn. `short`: its most prominent thing.

    Short texts that are equal could not be told apart, so `short` keeps the first scene of each.
    """
    all_scenes = tuple(map(sample_scene, SPLITS["evaluation"][:scenes]))
    long = tuple(long_text(scene, WRITERS[index % len(WRITERS)]) for index, scene in enumerate(all_scenes))
    first: dict[str, Scene] = {}
    for scene in all_scenes:
        first.setdefault(_short_text(scene), scene)
    return [SceneTexts("long", all_scenes, long), SceneTexts("short", tuple(first.values()), tuple(first))]


def classification_sets(per_class: int = 4) -> list[SceneClasses]:
    """`colour-shape`: the 64 classes, so many scenes of each."""
    names = class_names()
    labels = tuple(label for label in range(len(names)) for _ in range(per_class))
    seeds = SPLITS["evaluation"][-len(labels) :]
    scenes = tuple(single_thing_scene(seed, *names[label].split()) for seed, label in zip(seeds, labels, strict=True))
    return [SceneClasses("colour-shape", scenes, labels, tuple(names))]


def _short_text(scene: Scene) -> str:
    thing = next((thing for thing in scene.things if thing.size == "large"), scene.things[0])  # as a raw text has it
    return f"{thing.size} {thing.colour} {thing.shape} on {scene.background} background"
