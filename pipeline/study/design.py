"""What the reproduction study trains, as data: the arms, and the design that all arms have in common.

An arm is one training per seed: a method and the settings that differ from the design's. A result is identified by what
the arm computes and not by its name. To compare another method, add an arm here and its comparisons to
`comparisons.py`.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.digests import digest_of_file
from lotlip_data.pipeline.study import cells
from lotlip_data.pipeline.study.markdown import listed
from lotlip_data.synthetic.caption_writers import WRITERS
from lotlip_data.synthetic.hard_scenes import WEB_NOISE, WebNoise
from lotlip_data.training.config import METHODS, TrainConfig, make_config

VERSION = 2
"""Version of data and evaluation. Results of different versions are not mixed."""
SEEDS = 8
"""Number of final seeds, from 0, chosen with the power calculation before any of them ran."""
MORE_SEEDS = 12
"""Number of final seeds of the arms of the comparisons on long texts whose expected effects are the smallest, chosen at
the same time."""
PILOT_SEEDS = 3
"""Number of development seeds of the power calculation."""
FIRST_DEVELOPMENT_SEED = 1000
"""Settings are chosen on this seed and those above it. No page of results shows them."""
MODELS = "models"
"""Folder of the models that other arms start from, in the study's folder."""

SETTINGS: dict[str, Any] = {
    "image_tower": "tiny-vit-crowded",
    "text_tower": "tiny-bert-crowded",
    "batch": 32,
    "long_texts": 1,
    "lr": 1e-3,
    "weight_decay": 0.05,
    "warm_up": 50,
    "decoders": 1,
    "precision": "float32",  # the same on every machine
    "checkpoint_every": 200,
    "keep_checkpoints": 1,
}
"""Settings of every arm, chosen on development seeds: see docs/development/notes/study.md."""


@dataclass(frozen=True)
class Gallery:
    """Number of scenes to evaluate on."""

    unrelated: int = 1000
    """Unrelated scenes with long texts."""
    groups: int = 125
    """Groups of a scene and its near twins, with long texts."""
    twins: int = 3
    """Near twins per group."""
    short: int = 400
    """Scenes with a short text."""
    classified: int = 1000
    """Scenes to classify."""


@dataclass(frozen=True)
class Design:
    """What all arms have in common."""

    settings: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))
    steps: int = 2000
    """Number of steps of a training."""
    text_layers: int = 2
    """Layers of the text tower: the first ones of `settings["text_tower"]`."""
    scenes: int = 6400
    """Number of training scenes of a seed."""
    noise: WebNoise = WEB_NOISE
    """Noise of the raw texts."""
    gallery: Gallery = Gallery()

    @property
    def text_tower(self) -> str:
        """The folder of the text tower, in the study's folder."""
        return f"towers/{self.settings['text_tower']}-{self.text_layers}"

    @property
    def origin(self) -> list[Any]:
        """What the data of a seed depend on."""
        image_tower = _weights_digest(self.settings["image_tower"])
        return [VERSION, self.scenes, asdict(self.gallery), asdict(self.noise), image_tower]


@dataclass(frozen=True)
class Arm:
    """One training per seed."""

    name: str
    """The name in commands and results."""
    label: str
    """The name on the page."""
    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    start: str | None = None
    """Name of the arm whose model, of the same seed, this training starts from."""
    has_more_seeds: bool = False
    """Whether the arm has MORE_SEEDS seeds."""

    def config(self, design: Design, seed: int) -> TrainConfig:
        """The configuration of the training of a seed. Its paths are relative to the study's folder."""
        settings = design.settings | {"text_tower": design.text_tower} | METHODS[self.method] | dict(self.settings)
        if self.start:  # the model gives both towers
            settings["start_from"] = f"{MODELS}/{ARMS[self.start].key(design)}-{seed}"
            settings = {name: value for name, value in settings.items() if name not in ("image_tower", "text_tower")}
        settings["epochs"] = (design.steps * settings["batch"] + 0.5) / design.scenes  # 0.5: rounding takes no step
        return make_config(self.method, seed=seed, **settings)

    def key(self, design: Design) -> str:
        """The digest of everything that the arm computes, except the seed."""
        parts = [design.origin, design.text_layers, _weights_digest(design.settings["text_tower"])]
        parts.append(self.config(design, 0).to_dict())
        return cells.key_of(parts)


@functools.cache
def _weights_digest(tower: str) -> str:
    return digest_of_file(Path(resolve(tower), "model.safetensors")).sha256


def _arm(
    name: str, label: str, method: str, start: str | None = None, has_more_seeds: bool = False, **settings: Any
) -> Arm:
    return Arm(name, label, method, tuple(settings.items()), start, has_more_seeds)


COMPONENTS = 8
"""Principal components of the image features, which have 128 numbers: the share of Long-CLIP's 32 of CLIP's 512."""
_LOCKED: dict[str, Any] = {
    "components": COMPONENTS,
    "lock_image": True,
    "images": "features",
    "stretch": None,
    "context_length": 128,
}
"""Long-CLIP and DeBias-CLIP train both towers and stretch the text positions of a CLIP. Here the image tower stays
locked, as in all arms, and the text tower has positions enough."""

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        _arm("lit", "LiT", "lit"),
        _arm("lit_long", "LiT + long texts", "lit_long", has_more_seeds=True),
        _arm("lit_longclip", "LiT + Long-CLIP", "lit_longclip", has_more_seeds=True, components=COMPONENTS),
        _arm("register", "register tokens", "register", has_more_seeds=True),
        _arm("lotlip", "LoTLIP", "lotlip", has_more_seeds=True),
        _arm("lotlip_m1", "LoTLIP with m = 1", "lotlip", corner_tokens=1),
        _arm("lotlip_m4", "LoTLIP with m = 4", "lotlip", corner_tokens=4),
        _arm("unmasked", "LoTLIP without mask", "lotlip", has_more_seeds=True, corner_mask=False),
        *(_arm(f"only_{name}", f"LoTLIP with {name}", "lotlip", captioners=(name,)) for name in WRITERS),
        _arm("lit_long_s1", "LiT + long texts with S = 1", "lit_long", sub_captions=1),
        _arm("clip_long", "CLIP + long texts", "lit_long", start="lit", sub_captions="all"),
        _arm("longclip", "Long-CLIP", "longclip", start="lit", **_LOCKED),
        _arm("debias", "DeBias-CLIP", "debias", start="lit", **_LOCKED),
    )
}
"""All arms by name, in training order."""


FINAL = range(FIRST_DEVELOPMENT_SEED)
"""The seeds that pages of results show."""
DEVELOPMENT = range(FIRST_DEVELOPMENT_SEED, 2 * FIRST_DEVELOPMENT_SEED)
"""The seeds on which settings are chosen, and from which the power is calculated."""

PlannedSeeds = Mapping[str, range]
"""By name of every arm, the seeds that it has when the study is finished."""


def plan_seeds(pilot: bool, seeds: int | None = None) -> PlannedSeeds:
    """The planned seeds: final ones or, with `pilot`, development seeds. `seeds`: the number of each arm, if given."""
    if pilot:
        return dict.fromkeys(ARMS, DEVELOPMENT[: seeds or PILOT_SEEDS])
    return {name: FINAL[: seeds or (MORE_SEEDS if arm.has_more_seeds else SEEDS)] for name, arm in ARMS.items()}


def describe_seeds(planned: PlannedSeeds) -> str:
    """How many seeds the arms have: `12 seeds of LiT and LoTLIP, and 8 of the 13 other arms`."""
    fewest, most = min(map(len, planned.values())), max(map(len, planned.values()))
    if fewest == most:
        return f"{most} seeds of all {len(planned)} arms"
    favoured = [ARMS[name].label for name, seeds in planned.items() if len(seeds) > fewest]
    others = len(planned) - len(favoured)
    return f"{most} seeds of {listed(favoured)}, and {fewest} of the {others} other arms"


def with_starts(names: Iterable[str]) -> list[Arm]:
    """The named arms and those that they start from, in training order."""
    chosen = {name for given in names for name in (given, ARMS[given].start)}
    return [arm for arm in ARMS.values() if arm.name in chosen]
