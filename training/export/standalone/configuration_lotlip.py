"""The configuration of a LoTLIP in a folder of transformers."""

from typing import Any

from transformers import PretrainedConfig


class LoTLIPConfig(PretrainedConfig):
    """The description of both towers, as `towers.build` takes it, and the width of a feature."""

    model_type = "lotlip"

    def __init__(
        self, towers: dict[str, Any] | None = None, projection_dim: int | None = None, **settings: Any
    ) -> None:
        self.towers = towers
        self.projection_dim = projection_dim
        super().__init__(**settings)
