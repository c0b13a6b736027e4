"""The two towers: any ViT and any BERT-like encoder of transformers."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lotlip_data.training.attention import attention_mask


@dataclass(frozen=True)
class TextSettings:
    """How the text tower is built on its encoder. `mask` off gives register tokens: no rule, only padding masked."""

    corner_tokens: int = 2
    mask: bool = True

    def __post_init__(self) -> None:
        if self.corner_tokens < 0:
            raise ValueError(f"corner_tokens: {self.corner_tokens} is negative; use 0 to go without")


class TextTower(nn.Module):
    """Encoder, pooler (dense + tanh) and a bias-free projection, shared by [CLS] and the corner tokens.

    The corner tokens are `corner_tokens` extra rows of the encoder's word embeddings, each drawn from N(0, 0.02).
    """

    def __init__(self, encoder: Any, dim: int, settings: TextSettings = TextSettings()) -> None:
        super().__init__()
        config = encoder.config
        if getattr(encoder, "pooler", None) is None:
            raise ValueError(f"text tower: {type(encoder).__name__} has no pooler; use a BERT-like encoder with one")
        self.settings = settings
        self.encoder = encoder
        self.pad_id = int(config.pad_token_id)
        self.vocab_size = int(config.vocab_size)
        self.max_length = int(config.max_position_embeddings)
        self.proj = nn.Linear(config.hidden_size, dim, bias=False)
        nn.init.normal_(self.proj.weight, std=1 / math.sqrt(config.hidden_size))
        if settings.corner_tokens:
            self._add_corners(settings.corner_tokens)

    def _add_corners(self, count: int) -> None:
        old = self.encoder.get_input_embeddings()
        new = nn.Embedding(old.num_embeddings + count, old.embedding_dim, padding_idx=old.padding_idx)
        new.to(old.weight.device, old.weight.dtype)
        with torch.no_grad():
            new.weight[: old.num_embeddings] = old.weight
            nn.init.normal_(new.weight[old.num_embeddings :], std=0.02)
        self.encoder.set_input_embeddings(new)

    def forward(self, ids: Tensor) -> Tensor:
        """Features [N, m + 1, D], not normalised, row 0 the [CLS] feature, of token ids [N, L]."""
        corners = self.settings.corner_tokens
        mask = attention_mask(
            ids != self.pad_id,
            corners if self.settings.mask else 0,
            eager=self.encoder.config._attn_implementation == "eager",
            dtype=self.proj.weight.dtype,
        )
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, : corners + 1]
        # A pooler reads its input's first token: give it one token at a time.
        pooled = self.encoder.pooler(hidden.reshape(-1, 1, hidden.shape[-1]))
        features: Tensor = self.proj(pooled).view(len(ids), corners + 1, -1)
        return features


class ImageTower(nn.Module):
    """A ViT whose feature is its class token after the final norm, without a projection (as the authors' code)."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit
        self.dim: int = self.vit.config.hidden_size

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, D], not normalised, of pixels [N, 3, H, W]."""
        features: Tensor = self.vit(pixel_values=pixels).last_hidden_state[:, 0]
        return features


class TwoTowers(nn.Module):
    """Image and text tower with the one learnable temperature."""

    MAX_SCALE = 100.0

    def __init__(self, image: ImageTower, text: TextTower) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """The factor 1/τ on cosine similarities."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale in [1, 100], as the authors' code does after each step."""
        self.log_scale.clamp_(0.0, math.log(self.MAX_SCALE))


def load_image_tower(folder: str) -> ImageTower:
    """The pre-trained ViT of a local folder or hub id. Raises ValueError where there is none."""
    from transformers import AutoModel

    return ImageTower(_pretrained(AutoModel, folder, "image", add_pooling_layer=False))


def load_text_encoder(folder: str) -> Any:
    """The pre-trained BERT-like encoder of a local folder or hub id. Raises ValueError where there is none."""
    from transformers import AutoModel

    return _pretrained(AutoModel, folder, "text", attn_implementation="sdpa")


def build(image_config: dict[str, Any], text_config: dict[str, Any], settings: TextSettings) -> TwoTowers:
    """Towers of these configurations of transformers (`config.to_dict()`), with fresh weights."""
    from transformers import AutoConfig, AutoModel

    def make(config: dict[str, Any], **options: Any) -> nn.Module:
        return AutoModel.from_config(AutoConfig.for_model(**config), **options)

    image = ImageTower(make(image_config, add_pooling_layer=False))
    text = TextTower(make(text_config, attn_implementation="sdpa"), image.dim, settings)
    return TwoTowers(image, text)


def describe(towers: TwoTowers) -> dict[str, Any]:
    """What `build` needs to make these towers again."""
    return {
        "image": towers.image.vit.config.to_dict(),
        "text": towers.text.encoder.config.to_dict(),
        **asdict(towers.text.settings),
    }


def _pretrained(auto: Any, folder: str, which: str, **options: Any) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for reading one small file; the training tells its own progress
    try:
        return auto.from_pretrained(folder, dtype=torch.float32, **options)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{which} tower {folder!r}: no model can be read there ({error})") from error
