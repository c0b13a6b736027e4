"""A LoTLIP as a model of transformers.

Shapes: N images or texts, L tokens, D width of a feature.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from lotlip_data.training.export.standalone.configuration_lotlip import LoTLIPConfig
from lotlip_data.training.models.towers import build


@dataclass
class LoTLIPOutput(ModelOutput):
    """Unit features [N, D], and the logits: their cosine similarities times the model's scale, plus its bias if it has
    one."""

    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class LoTLIPModel(PreTrainedModel):
    """Both towers, and scale and bias of the logits, under the names that a trained model's folder gives them."""

    config_class = LoTLIPConfig

    def __init__(self, config: LoTLIPConfig) -> None:
        super().__init__(config)
        towers = build(config.towers or {})
        self.image, self.text = towers.image, towers.text
        self.log_scale, self.logit_bias = towers.log_scale, towers.logit_bias
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **ignored: Any) -> Tensor:
        """Features [N, D], not normalized, of pixels [N, 3, height, width]."""
        features: Tensor = self.image(pixel_values)
        return features

    def get_text_features(self, input_ids: Tensor, **ignored: Any) -> Tensor:
        """Features [N, D], not normalized, of token ids [N, L]. Padding is known by its id; a mask is not read."""
        features: Tensor = self.text(input_ids)[:, 0]
        return features

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **ignored: Any
    ) -> LoTLIPOutput:
        """The unit features of what is given, and the logits if both are."""
        image = None if pixel_values is None else F.normalize(self.get_image_features(pixel_values), dim=-1)
        text = None if input_ids is None else F.normalize(self.get_text_features(input_ids), dim=-1)
        if image is None or text is None:
            return LoTLIPOutput(image_embeds=image, text_embeds=text)
        logits = torch.exp(self.log_scale) * image @ text.T
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return LoTLIPOutput(logits, logits.T, image, text)
