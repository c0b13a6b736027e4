"""A folder of transformers, which `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)` loads.

The folder has the code of the model, of its tokenizer and of its image processor: copies of this project's modules. A
CLIP without corner tokens and without a bias of its logits becomes transformers' own CLIPModel, which needs no code;
its tokenizer and image processor have code all the same, so that texts are cleaned and images cropped as in the
training.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lotlip_data.manifests.checkpoints import conversion
from lotlip_data.manifests.checkpoints.weights import write_weights
from lotlip_data.training.export.base import Format
from lotlip_data.training.export.clip import clip_config, clip_weights, is_clip
from lotlip_data.training.export.corners import without_corner_tokens
from lotlip_data.training.export.source_files import write_sources
from lotlip_data.training.export.text_files import describe_tokenizer, form_of, write_tokenizer
from lotlip_data.training.models import towers
from lotlip_data.training.models.lotlip import LoTLIP

MODULES = tuple(
    f"lotlip_data.training.export.standalone.{name}_lotlip"
    for name in ("configuration", "modeling", "tokenization", "image_processing", "processing")
)
_PROCESSOR = {"AutoProcessor": "processing_lotlip.LoTLIPProcessor"}


class TransformersFolder(Format):
    """A model of transformers with its own code."""

    mark = "config.json"
    tolerance = 1e-5

    def prepare(self, model: LoTLIP) -> LoTLIP:
        return without_corner_tokens(model) or model

    def write(self, model: LoTLIP, folder: Path) -> None:
        weights = clip_weights(model) if _is_clip_model(model) else model.towers.state_dict()
        write_weights(folder / "model.safetensors", weights)
        write_sources(MODULES, folder, is_package=True)
        write_tokenizer(
            folder,
            describe_tokenizer(model.tokenizer),
            model.tokenizer,
            tokenizer_class="CLIPTokenizer" if _is_clip_model(model) else "LoTLIPTokenizer",
            text_form=form_of(model.tokenizer),
            text_padding="max_length" if model.tokenizer.is_padded else "longest",
            auto_map={"AutoTokenizer": [None, "tokenization_lotlip.LoTLIPTokenizer"], **_PROCESSOR},
            processor_class="LoTLIPProcessor",
        )
        processor = {
            "image_processor_type": "LoTLIPImageProcessor",
            "processor_class": "LoTLIPProcessor",
            "auto_map": {"AutoImageProcessor": "image_processing_lotlip.LoTLIPImageProcessor", **_PROCESSOR},
            "transform": model.transform.settings(),
        }
        conversion.write_text(folder / "preprocessor_config.json", json.dumps(processor, indent=2))

    def describe(self, model: LoTLIP, home: str) -> dict[str, Any]:
        if _is_clip_model(model):
            return {**clip_config(model), "auto_map": _PROCESSOR}
        return {
            "model_type": "lotlip",
            "architectures": ["LoTLIPModel"],
            "auto_map": {
                "AutoConfig": "configuration_lotlip.LoTLIPConfig",
                "AutoModel": "modeling_lotlip.LoTLIPModel",
                **_PROCESSOR,
            },
            "dtype": "float32",
            "projection_dim": model.towers.image.dim,
            "towers": towers.describe(model.towers),
        }

    def load(self, folder: Path) -> "_Reader":
        return _Reader(folder)


def _is_clip_model(model: LoTLIP) -> bool:
    """Whether transformers' CLIPModel computes the model."""
    return is_clip(model) and model.towers.logit_bias is None


class _Reader:
    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoProcessor

        self._model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        self._processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        return self._unit(self._model.get_image_features(**self._processor(images=list(images), return_tensors="pt")))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return self._unit(self._model.get_text_features(**self._processor(text=list(texts), return_tensors="pt")))

    def _unit(self, features: Any) -> Tensor:
        return F.normalize(getattr(features, "pooler_output", features), dim=-1)
