"""Data of the reproduction study: one dataset per seed for all arms, and the scenes of the evaluation.

STUDY/data/SEED-ID/shards …         the dataset, with the locked image tower's features; ID says how it is made
STUDY/data/SEED-ID/gallery.npz      the features of the pictures of the evaluation
STUDY/towers/NAME-N/                the text tower: the first N layers of NAME
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.feature_file import encode_features, read_features
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.study import cells, world
from lotlip_data.pipeline.study.design import ARMS, Design, Gallery
from lotlip_data.synthetic.eval_sets import TEMPLATES
from lotlip_data.synthetic.hard_scenes import crowded_scene, crowded_text, salient_object, short_text, web_text
from lotlip_data.synthetic.scenes import Scene, class_names, render

if TYPE_CHECKING:
    from torch import Tensor

    from lotlip_data.training.evaluation.models import Embedder

BLOCKS = world.SeedBlocks("study", scenes=20_000, training=14_000)
GALLERY = "gallery.npz"
LONG_TEXTS = ("person", "sharegpt4v")
"""The writers of the long texts of the evaluation. They make no errors there."""


@dataclass(frozen=True)
class EvaluationScenes:
    """The scenes of the evaluation of a seed."""

    unrelated: tuple[Scene, ...]
    grouped: tuple[Scene, ...]
    """Groups of a scene and its near twins."""
    short: tuple[Scene, ...]
    """Scenes whose short texts are all different."""
    classified: tuple[Scene, ...]
    """Scenes whose class is the colour and shape of the salient object."""

    @property
    def all(self) -> Sequence[Scene]:
        return (*self.unrelated, *self.grouped, *self.short, *self.classified)

    def split(self, features: np.ndarray) -> list[np.ndarray]:
        """The rows of `all` by kind of scene."""
        sizes = [len(self.unrelated), len(self.grouped), len(self.short)]
        return np.split(features, np.cumsum(sizes))


@functools.lru_cache(maxsize=2)
def evaluation_scenes(seed: int, gallery: Gallery) -> EvaluationScenes:
    """The scenes of the evaluation of a seed. No training uses them."""
    seeds = BLOCKS.evaluation_seeds(seed)
    unrelated = tuple(crowded_scene(next(seeds)) for _ in range(gallery.unrelated))
    grouped = world.twin_groups(seeds, gallery.groups, gallery.twins)
    short: dict[str, Scene] = {}
    while len(short) < gallery.short:
        scene = crowded_scene(next(seeds))
        short.setdefault(short_text(scene), scene)
    classified = tuple(crowded_scene(next(seeds)) for _ in range(gallery.classified))
    return EvaluationScenes(unrelated, grouped, tuple(short.values()), classified)


def folder(study: str, design: Design, seed: int) -> Path:
    """The folder of a seed's data."""
    return Path(study, "data", f"{seed}-{cells.key_of(design.origin)}")


def is_written(study: str, design: Design, seed: int) -> bool:
    """Whether `write` has finished for this seed."""
    return (folder(study, design, seed) / GALLERY).exists() and Path(study, design.text_tower).exists()


def write(study: str, design: Design, seed: int) -> None:
    """Write the data of a seed, the features of the evaluation's pictures last. The study's folder is the current one.

    Existing files stay.
    """
    tower = Path(study, design.text_tower)
    tower.parent.mkdir(parents=True, exist_ok=True)
    world.write_text_tower(design.settings["text_tower"], design.text_layers, tower)
    config = ARMS["lit"].config(design, seed)
    run = Run.at(str(folder(study, design, seed)))
    world.write_dataset(
        run, BLOCKS.training_scenes(seed, design.scenes), lambda scene: web_text(scene, design.noise), config
    )
    features = world.unit_features(config, evaluation_scenes(seed, design.gallery).all)
    storage.create(str(folder(study, design, seed) / GALLERY), encode_features(features))


def evaluate(study: str, design: Design, seed: int, model: str, shares_image_tower: bool) -> world.Figures:
    """The figures of a trained model: R@1 of long and short texts in both directions, and top-1, in percent.

    The figures of long texts of near twins begin with `twins.`.

    Args:
        study: The study's folder.
        design: The design.
        seed: The seed, which decides the scenes.
        model: The model's folder.
        shares_image_tower: The model's image tower is the locked one that all arms share, whose features are stored.
    """
    import torch

    from lotlip_data.training.evaluation.models import load_embedder

    scenes, embedder = evaluation_scenes(seed, design.gallery), load_embedder(model, "cpu")
    if shares_image_tower:
        features = read_features(str(folder(study, design, seed) / GALLERY), (len(scenes.all), None))
    else:
        features = embedder.embed_images(map(render, scenes.all)).numpy()
    unrelated, grouped, short, classified = scenes.split(features)
    figures = world.retrieval_figures(embedder, unrelated, _long_texts(scenes.unrelated))
    figures |= world.retrieval_figures(embedder, grouped, _long_texts(scenes.grouped, "twins."))
    figures |= world.retrieval_figures(embedder, short, {"short": [short_text(scene) for scene in scenes.short]})
    return figures | {"class.top1": _top1(embedder, torch.from_numpy(classified), scenes.classified)}


def _long_texts(scenes: Sequence[Scene], prefix: str = "") -> dict[str, list[str]]:
    """The long texts of the scenes by the writer's name."""
    return {prefix + name: [crowded_text(scene, name) for scene in scenes] for name in LONG_TEXTS}


def _top1(embedder: "Embedder", images_ND: "Tensor", scenes: Sequence[Scene]) -> float:
    """The top-1 accuracy in percent. The feature of a class is the mean over all templates."""
    from torch.nn.functional import normalize

    from lotlip_data.training.evaluation.metrics import accuracy

    names = class_names()
    prompts = [template.format(name) for name in names for template in TEMPLATES]
    features = embedder.embed_texts(prompts).features.unflatten(0, (len(names), len(TEMPLATES)))
    salient = map(salient_object, scenes)
    labels = [names.index(f"{obj.colour} {obj.shape}") for obj in salient]
    return 100 * accuracy(images_ND, normalize(features.mean(dim=1), dim=-1), labels)
