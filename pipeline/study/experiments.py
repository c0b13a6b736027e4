"""Every training of the study, as data: what sets a row apart, and which rows each table and figure of the paper needs.

A row that several tables share is trained once for each seed: rows are known by what they compute, not by their name.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lotlip_data.training.config import METHODS, TrainConfig, make_config

Texts = Literal["captioners", "detailed"]

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
    "checkpoint_every": 50,
    "keep_checkpoints": 1,
}
"""Of every row. Chosen on development scenes alone; see docs/development/notes/study.md."""
FRESH: dict[str, Any] = {"epochs": 5, "batch": 32, "lr": 1e-3, "warm_up": 200}
"""Of rows that start from fresh weights, in place of SETTINGS, with which they hardly leave chance."""

EDITIONS: dict[Texts, int] = {"captioners": 1, "detailed": 2}
"""Of the data's and the evaluation's code, and of the towers' weights: results of another one are not mixed."""
SCALES = (1, 3, 10)
SUB_CAPTIONS = range(7)
LIMITS = (32, 64, 77, 128, 192, 256, 512)
LONGEST = 256
"""No text of `detailed` has more tokens, so with more room a training is the same training."""


@dataclass(frozen=True)
class Gallery:
    """How many scenes are evaluated on: groups of near twins, short texts, pictures to classify."""

    groups: int = 250
    twins: int = 3
    short: int = 400
    classified: int = 500


@dataclass(frozen=True)
class Design:
    """What all rows have in common. `scenes` are those of the scale 1×."""

    settings: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))
    fresh: dict[str, Any] = field(default_factory=lambda: dict(FRESH))
    scenes: int = 2400
    gallery: Gallery = Gallery()


@dataclass(frozen=True)
class Experiment:
    """One training of each seed: a method, the settings that are not those of all rows, and the data."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    scale: int = 1
    texts: Texts = "captioners"

    def config(self, design: Design, seed: int) -> TrainConfig:
        """The training of this seed."""
        method = METHODS[self.method]
        fresh = {} if method.get("pretrained_text", True) else design.fresh
        return make_config(self.method, seed=seed, **design.settings | fresh | method | dict(self.settings))

    def key(self, design: Design) -> str:
        """12 hexadecimal digits that stand for everything that the row computes, but for the seed."""
        computed: list[Any] = [EDITIONS[self.texts], design.scenes, asdict(design.gallery), self.scale, self.texts]
        computed.append(self.config(design, 0).to_dict())
        return hashlib.sha256(json.dumps(computed).encode()).hexdigest()[:12]


def row(method: str, scale: int = 1, texts: Texts = "captioners", **settings: Any) -> Experiment:
    """A row; what the method's settings are anyhow makes no other row of it."""
    plain = Experiment(method).config(Design(), 0)
    apart = {name: value for name, value in settings.items() if getattr(plain, name) != value}
    return Experiment(method, tuple(sorted(apart.items())), scale, texts)


LIT, LIT_LONG, LONGCLIP, LOTLIP = (row(method) for method in ("lit", "lit_long", "lit_longclip", "lotlip"))
REGISTER = row("register")
UNMASKED = row("lotlip", corner_mask=False)
CLIP, CLIP_LONG = row("clip", scale=10), row("lotlip_scratch", scale=10, corner_tokens=0)
SCRATCH = row("lotlip_scratch", scale=10)


def corners(count: int) -> Experiment:
    """LoTLIP with that many corner tokens; without any it is LiT with long texts."""
    return row("lotlip", corner_tokens=count) if count else LIT_LONG


def captioner(name: str) -> Experiment:
    """LoTLIP on the long texts of one captioner."""
    return row("lotlip", captioners=(name,))


def scaled(method: str, scale: int) -> Experiment:
    return row(method, scale=scale)


def sub_captions(method: str, count: int) -> Experiment:
    """`lit_long` or `lotlip` on so many sub-captions; LiT on none is LiT."""
    return LIT if (method, count) == ("lit_long", 0) else row(method, sub_captions=count)


def limited(limit: int) -> Experiment:
    """LoTLIP on whole texts of 12 to 20 sentences, cut at so many tokens."""
    return row("lotlip", texts="detailed", sub_captions=20, context_length=min(limit, LONGEST))


ROWS: dict[str, Sequence[Experiment]] = {
    "table-2": (LIT, LIT_LONG, LONGCLIP, LOTLIP),
    "table-3": (*(corners(count) for count in range(5)), UNMASKED),
    "table-7": (LIT_LONG, REGISTER, LOTLIP),
    "table-9": (*(captioner(name) for name in ("instructblip", "llava", "sharegpt4v")), LOTLIP),
    "figure-2": tuple(sub_captions("lit_long", count) for count in SUB_CAPTIONS),
    "figure-5": tuple(sub_captions(method, count) for method in ("lit_long", "lotlip") for count in SUB_CAPTIONS),
    "table-10": tuple(scaled(method, scale) for scale in SCALES for method in ("lit", "lotlip")),
    "table-11": tuple(scaled(method, scale) for scale in SCALES for method in ("lit", "lotlip")),
    "figure-4": tuple(limited(limit) for limit in LIMITS),
    "table-8": (CLIP, CLIP_LONG, SCRATCH),
}
"""The rows of each table and figure, in the order in which they are trained."""


def distinct(names: Iterable[str]) -> list[Experiment]:
    """The rows of these tables and figures, each once, in the order of ROWS."""
    wanted = set(names)
    return list(dict.fromkeys(one for name, rows in ROWS.items() if name in wanted for one in rows))
