"""Every experiment of the study as data: what it trains, and which table or figure of the paper shows it.

An experiment is one row of a table or one point of a figure. Experiments are identified by what they compute, not by
their name, so an experiment that several tables share is trained once per seed.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lotlip_data.training.config import METHODS, TrainConfig, make_config

Texts = Literal["captioners", "detailed"]
"""The long texts of a dataset: those of three captioners, or error-free ones of 12 to 20 sentences."""

SETTINGS: dict[str, Any] = {
    "image_tower": "tiny-vit-crowded",
    "text_tower": "tiny-bert-crowded",
    "epochs": 10,
    "batch": 64,
    "long_texts": 1,
    "lr": 2e-3,
    "weight_decay": 0.05,
    "warm_up": 30,
    "decoders": 1,
    "precision": "float32",  # the same on every machine
    "checkpoint_every": 50,
    "keep_checkpoints": 1,
}
"""Settings of every experiment, chosen on development scenes only: see docs/development/notes/study.md."""
FROM_SCRATCH_SETTINGS: dict[str, Any] = {"epochs": 5, "batch": 32, "lr": 1e-3, "warm_up": 200}
"""What replaces SETTINGS for experiments that train from scratch: with SETTINGS these stay near chance."""

DATA_VERSIONS: dict[Texts, int] = {"captioners": 1, "detailed": 2}
"""Versions of the data, of the evaluation and of the towers' weights. Results of different versions are not mixed."""
SCALES = (1, 3, 10)
"""Dataset sizes, as multiples of `Design.scenes`."""
SUB_CAPTION_COUNTS = range(7)
TOKEN_LIMITS = (32, 64, 77, 128, 192, 256, 512)
MAX_TEXT_TOKENS = 256
"""No text of `detailed` has more tokens, so trainings with higher limits are the same training."""


@dataclass(frozen=True)
class Gallery:
    """Number of scenes to evaluate on. The field names are part of `Experiment.key`."""

    groups: int = 250
    """Groups of a scene and its near twins."""
    twins: int = 3
    """Near twins per group."""
    short: int = 400
    """Scenes with a short text."""
    classified: int = 500
    """Scenes to classify."""


@dataclass(frozen=True)
class Design:
    """What all experiments have in common."""

    settings: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))
    from_scratch: dict[str, Any] = field(default_factory=lambda: dict(FROM_SCRATCH_SETTINGS))
    scenes: int = 2400
    """Number of training scenes at scale 1×."""
    gallery: Gallery = Gallery()


@dataclass(frozen=True)
class Experiment:
    """One training per seed: a method, the settings that differ from the design's, and the data."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    scale: int = 1
    texts: Texts = "captioners"

    def config(self, design: Design, seed: int) -> TrainConfig:
        """The configuration of the training of a seed."""
        method = METHODS[self.method]
        from_scratch = {} if method.get("pretrained_text", True) else design.from_scratch
        return make_config(self.method, seed=seed, **design.settings | from_scratch | method | dict(self.settings))

    def key(self, design: Design) -> str:
        """12 hexadecimal digits that identify everything that the experiment computes, except the seed."""
        computed: list[Any] = [DATA_VERSIONS[self.texts], design.scenes, asdict(design.gallery), self.scale, self.texts]
        computed.append(self.config(design, 0).to_dict())
        return hashlib.sha256(json.dumps(computed).encode()).hexdigest()[:12]


def experiment(method: str, scale: int = 1, texts: Texts = "captioners", **settings: Any) -> Experiment:
    """An experiment. Settings that equal the method's defaults are dropped, so equal experiments compare equal."""
    default = Experiment(method).config(Design(), 0)
    changed = {name: value for name, value in settings.items() if getattr(default, name) != value}
    return Experiment(method, tuple(sorted(changed.items())), scale, texts)


LIT, LIT_LONG, LONGCLIP, LOTLIP = (experiment(method) for method in ("lit", "lit_long", "lit_longclip", "lotlip"))
REGISTER = experiment("register")
UNMASKED = experiment("lotlip", corner_mask=False)
CLIP, CLIP_LONG = experiment("clip", scale=10), experiment("lotlip_scratch", scale=10, corner_tokens=0)
SCRATCH = experiment("lotlip_scratch", scale=10)


def with_corner_tokens(count: int) -> Experiment:
    """LoTLIP with `count` corner tokens. Without corner tokens it is LiT with long texts."""
    return experiment("lotlip", corner_tokens=count) if count else LIT_LONG


def with_captioner(name: str) -> Experiment:
    """LoTLIP on the long texts of one captioner."""
    return experiment("lotlip", captioners=(name,))


def at_scale(method: str, scale: int) -> Experiment:
    """A method on a dataset of another scale."""
    return experiment(method, scale=scale)


def with_sub_captions(method: str, count: int) -> Experiment:
    """`lit_long` or `lotlip` on `count` sub-captions per long text. LiT without sub-captions is LiT."""
    return LIT if (method, count) == ("lit_long", 0) else experiment(method, sub_captions=count)


def with_token_limit(limit: int) -> Experiment:
    """LoTLIP on whole texts of 12 to 20 sentences, truncated to `limit` tokens."""
    return experiment("lotlip", texts="detailed", sub_captions=20, context_length=min(limit, MAX_TEXT_TOKENS))


EXPERIMENTS: dict[str, Sequence[Experiment]] = {
    "table-2": (LIT, LIT_LONG, LONGCLIP, LOTLIP),
    "table-3": (*(with_corner_tokens(count) for count in range(5)), UNMASKED),
    "table-7": (LIT_LONG, REGISTER, LOTLIP),
    "table-9": (*(with_captioner(name) for name in ("instructblip", "llava", "sharegpt4v")), LOTLIP),
    "figure-2": tuple(with_sub_captions("lit_long", count) for count in SUB_CAPTION_COUNTS),
    "figure-5": tuple(
        with_sub_captions(method, count) for method in ("lit_long", "lotlip") for count in SUB_CAPTION_COUNTS
    ),
    "table-10": tuple(at_scale(method, scale) for scale in SCALES for method in ("lit", "lotlip")),
    "table-11": tuple(at_scale(method, scale) for scale in SCALES for method in ("lit", "lotlip")),
    "figure-4": tuple(with_token_limit(limit) for limit in TOKEN_LIMITS),
    "table-8": (CLIP, CLIP_LONG, SCRATCH),
}
"""The experiments of each table and figure, in training order."""


def distinct_experiments(names: Iterable[str]) -> list[Experiment]:
    """The experiments of the named tables and figures, each once, in the order of EXPERIMENTS."""
    selected = set(names)
    return list(dict.fromkeys(each for name, group in EXPERIMENTS.items() if name in selected for each in group))
