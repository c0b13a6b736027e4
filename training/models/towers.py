"""The two towers: any ViT and any BERT-like encoder of transformers."""

import inspect
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lotlip_data.training.models.corner_attention import PADDING, attention_mask

ROUNDING = 1e-4
"""Of features in float32, relative to the largest: what sums in another order may differ by, and more."""


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
        self.max_length = _positions(encoder)
        padding = encoder.embeddings.position_embeddings.padding_idx
        self._first_position = 0 if padding is None else padding + 1  # RoBERTa's table keeps rows for padding
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

    def forward(
        self,
        ids: Tensor,
        words: Tensor | None = None,
        text: Tensor | None = None,
        place: Tensor | None = None,
        heads: Tensor | None = None,
    ) -> Tensor:
        """Features [N, m + 1, D], not normalised, row 0 the [CLS] feature, of token ids [R, L].

        `words` [R, L, H] are the ids' word embeddings, where they have been looked up already. Without the other three
        each row is one text. With them a row may hold several: `text` and `place` [R, L] as `attention_mask` takes
        them, `heads` [N] where in all R × L tokens each text begins, in the order of the features.
        """
        corners = self.settings.corner_tokens
        given = {"input_ids": ids} if words is None else {"inputs_embeds": words}
        if text is None or place is None or heads is None:
            text = torch.where(ids == self.pad_id, PADDING, 0)
            place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            heads = torch.arange(len(ids), device=ids.device) * ids.shape[1]
        else:
            given["position_ids"] = place + self._first_position
        mask = attention_mask(
            text,
            place,
            corners if self.settings.mask else 0,
            eager=self.encoder.config._attn_implementation == "eager",
            dtype=self.proj.weight.dtype,
        )
        hidden = self.encoder(**given, attention_mask=mask).last_hidden_state
        kept = hidden.flatten(0, 1)[heads[:, None] + torch.arange(corners + 1, device=ids.device)]
        # A pooler reads its input's first token: give it one token at a time.
        pooled = self._pool(kept.flatten(0, 1)[:, None])
        features: Tensor = self.proj(pooled).view(len(heads), corners + 1, -1)
        return features

    @cached_property
    def shares_rows(self) -> bool:
        """Whether texts keep their features beside others in a row: tried once, on two short texts.

        An encoder that looks at neighbouring tokens other than by attention, as MobileBERT does, would mix them.
        """
        lengths = tuple(min(self.settings.corner_tokens + some, self.max_length) for some in (6, 4))
        usable = [token for token in range(min(self.vocab_size, 64)) if token != self.pad_id]
        ids = torch.tensor([usable[n % len(usable)] for n in range(sum(lengths))], device=self.proj.weight.device)
        text = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)]).to(ids.device)
        place = torch.cat([torch.arange(length) for length in lengths]).to(ids.device)
        heads = torch.tensor([0, lengths[0]], device=ids.device)
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
            alone = torch.cat([self.forward(one[None]) for one in ids.split(lengths)])
            together = self.forward(ids[None], None, text[None], place[None], heads)
        for module, training in modes:
            module.training = training
        return bool((alone - together).abs().max() <= ROUNDING * alone.abs().max())

    def _pool(self, hidden: Tensor) -> Tensor:
        pooled: Tensor = self.encoder.pooler(hidden)
        activation = getattr(self.encoder, "pooler_activation", None)  # ALBERT's pooler is the dense layer alone
        return pooled if activation is None else activation(pooled)


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
        self._locked: list[nn.Module] = []

    @property
    def scale(self) -> Tensor:
        """The factor 1/τ on cosine similarities."""
        return self.log_scale.exp()

    def lock(self, *, image: bool, text: bool) -> None:
        """Keep a tower as it is: no gradients, no dropout. Of a locked text tower the projection still learns."""
        self.image.requires_grad_(not image)
        self.text.encoder.requires_grad_(not text)
        self._locked = [tower for tower, locked in ((self.image, image), (self.text.encoder, text)) if locked]

    def train(self, mode: bool = True) -> "TwoTowers":
        """As of any module, but locked towers stay in evaluation mode."""
        super().train(mode)
        for tower in self._locked:
            tower.eval()
        return self

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale in [1, 100], as the authors' code does after each step."""
        self.log_scale.clamp_(0.0, math.log(self.MAX_SCALE))


def make_vit(config: Any) -> Any:
    """The ViT of this configuration of transformers, with fresh weights and no pooler."""
    from transformers import AutoModel

    return AutoModel.from_config(config, **without_pooler(config))


def make_encoder(config: Any) -> Any:
    """The BERT-like encoder of this configuration of transformers, with fresh weights."""
    from transformers import AutoModel

    return AutoModel.from_config(config, attn_implementation="sdpa")


def without_pooler(config: Any) -> dict[str, bool]:
    """What tells a ViT to have no pooler, where it could have one."""
    from transformers import MODEL_MAPPING

    model: Any = MODEL_MAPPING.get(type(config), None)
    takes = model is not None and "add_pooling_layer" in inspect.signature(model).parameters
    return {"add_pooling_layer": False} if takes else {}


def _positions(encoder: Any) -> int:
    """How long a text may be: RoBERTa's table keeps rows for padding, up to and with the padding token's id."""
    table = encoder.embeddings.position_embeddings
    return int(table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))


def build(image_config: dict[str, Any], text_config: dict[str, Any], settings: TextSettings) -> TwoTowers:
    """Towers of these configurations of transformers (`config.to_dict()`), with fresh weights."""
    from transformers import AutoConfig

    image = ImageTower(make_vit(AutoConfig.for_model(**image_config)))
    text = TextTower(make_encoder(AutoConfig.for_model(**text_config)), image.dim, settings)
    return TwoTowers(image, text)


def describe(towers: TwoTowers) -> dict[str, Any]:
    """What `build` needs to make these towers again."""
    return {
        "image": towers.image.vit.config.to_dict(),
        "text": towers.text.encoder.config.to_dict(),
        **asdict(towers.text.settings),
    }
