"""What the study of scores computes, as data.

A cell is one training: a seed, an error rate of the captioners, and a role. The `scorer` is trained on all texts and
scores them. The other roles are the arms that are compared; two of them use the scores.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lotlip_data.pipeline.study import cells
from lotlip_data.training.config import METHODS, TrainConfig, make_config

Role = Literal["scorer", "all", "filtered", "weighted"]
"""`scorer`, or the texts of a training: all alike; without the lowest-scored sub-captions; or drawn with weights."""
ROLES: tuple[Role, ...] = get_args(Role)
ARMS = ROLES[1:]
SCORERS = ("similarity", "agreement", "combined")
RATES = (0.0, 0.1, 0.2, 0.4)
"""Shares of the statements in which one attribute is wrong, the same for all captioners."""
FIRST_DEVELOPMENT_SEED = 50
"""Settings are chosen on this seed and those above it; no table shows them."""
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
"""Settings of every training, chosen on development scenes: see docs/development/notes/scores.md."""
VERSION = 1
"""Version of data and evaluation. Results of different versions are not mixed."""


@dataclass(frozen=True)
class Gallery:
    """Number of scenes to evaluate on."""

    groups: int = 250
    """Groups of a scene and its near twins."""
    twins: int = 3
    """Near twins per group."""


@dataclass(frozen=True)
class ScoresDesign:
    """What all cells have in common. The defaults were chosen on development scenes."""

    settings: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))
    text_layers: int = 1
    """Layers of the arms' text towers: the first ones of the study's tower."""
    scorer_layers: int = 3
    """Layers of the scorer's text tower: all of the study's tower."""
    scenes: int = 2400
    gallery: Gallery = field(default_factory=Gallery)
    similarity_weight: float = 0.1
    """Weight of similarity in the combined score; agreement has the rest."""
    neighbours: int = 30
    """Option of agreement: the support of so many like sub-captions is subtracted."""
    dropped: float = 0.2
    """Share of the sub-captions, those with the lowest combined scores, that the arm `filtered` leaves out."""
    temperature: float = 0.5
    """`text_temperature` of the arm `weighted`."""

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the scorers in the combined score."""
        return {"similarity": self.similarity_weight, "agreement": 1 - self.similarity_weight}

    def layers(self, role: Role) -> int:
        """Layers of the text tower of a training."""
        return self.scorer_layers if role == "scorer" else self.text_layers

    def config(self, role: Role, seed: int, text_tower: str) -> TrainConfig:
        """The configuration of a training."""
        settings = self.settings | METHODS["lotlip"] | {"text_tower": text_tower}
        if role == "weighted":
            settings |= {"text_weights": "score", "text_temperature": self.temperature}
        return make_config("lotlip", seed=seed, **settings)

    def key(self, role: Role) -> str:
        """12 hexadecimal digits that identify everything that a role computes, except seed and error rate."""
        parts: list[Any] = [VERSION, role, self.layers(role), self.scenes, [self.gallery.groups, self.gallery.twins]]
        parts.append(self.config(role, 0, "").to_dict())
        if role != "all":
            parts += [self.similarity_weight, self.neighbours, self.scorer_layers]
        if role == "filtered":
            parts.append(self.dropped)
        return cells.key_of(parts)
