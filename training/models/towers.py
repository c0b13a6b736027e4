"""The image tower and the text tower: an image encoder and a BERT-like encoder of transformers.

Shapes, also as suffixes of names:
    N  images or texts
    R  rows of tokens (one text per row, or several: see packing.py)
    L  tokens per row
    K  features per text: 1 + m, [CLS] and m corner tokens
    E  hidden size of the text encoder
    D  width of a feature: that of the image tower's
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lotlip_data.training.models.corner_attention import PADDING, attention_mask
from lotlip_data.training.models.pooling import Pooling, check_pooling, pool, unmasked_inputs

PACKING_TOLERANCE = 1e-4
"""Largest difference of float32 features, relative to the largest feature, that a sum in another order explains."""


@dataclass(frozen=True)
class TextSettings:
    """The corner tokens that the text tower adds to its encoder (paper, Sec. 4.3; m = 2).

    `corner_tokens` is m. `mask` applies the paper's attention mask; off, the tokens are register tokens (paper,
    Table 7): only padding is masked.
    """

    corner_tokens: int = 2
    mask: bool = True

    def __post_init__(self) -> None:
        if self.corner_tokens < 0:
            raise ValueError(f"corner_tokens: {self.corner_tokens} is negative; use 0 for no corner tokens")


class TextTower(nn.Module):
    """Encoder, pooler (dense + tanh) and projection without bias.

    [CLS] and the corner tokens share pooler and projection (authors' code). The corner tokens are m extra rows of the
    encoder's word embeddings, each drawn from N(0, 0.02) on its own.
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
        # RoBERTa's table has rows for padding, up to and including the padding token's id. Texts cannot use them.
        positions = encoder.embeddings.position_embeddings
        self._first_position = 0 if positions.padding_idx is None else positions.padding_idx + 1
        self.max_length = int(positions.num_embeddings - self._first_position)
        self.proj = nn.Linear(config.hidden_size, dim, bias=False)
        nn.init.normal_(self.proj.weight, std=1 / math.sqrt(config.hidden_size))
        if settings.corner_tokens:
            self._add_corner_embeddings(settings.corner_tokens)

    def _add_corner_embeddings(self, count: int) -> None:
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
        embeddings: Tensor | None = None,
        text: Tensor | None = None,
        position: Tensor | None = None,
        cls_index: Tensor | None = None,
    ) -> Tensor:
        """Features of texts. Without the last three arguments each row is one text; with them a row may hold several.

        Args:
            ids: [R, L] token ids.
            embeddings: [R, L, E] word embeddings of the ids, if they have been looked up already.
            text: [R, L] index of the text that a token belongs to, or PADDING.
            position: [R, L] position of a token in its text.
            cls_index: [N] index of each text's [CLS] in the R·L tokens, in the order of the features.

        Returns:
            [N, K, D] features, not normalized; feature 0 of a text is its [CLS] feature.
        """
        corners = self.settings.corner_tokens
        inputs = {"input_ids": ids} if embeddings is None else {"inputs_embeds": embeddings}
        if text is None or position is None or cls_index is None:
            text = torch.where(ids == self.pad_id, PADDING, 0)
            position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            cls_index = torch.arange(len(ids), device=ids.device) * ids.shape[1]
        else:
            inputs["position_ids"] = position + self._first_position
        mask = attention_mask(
            text,
            position,
            corners if self.settings.mask else 0,
            eager=self.encoder.config._attn_implementation == "eager",
            dtype=self.proj.weight.dtype,
        )
        hidden_RLE = self.encoder(**inputs, attention_mask=mask).last_hidden_state
        summary_NKE = hidden_RLE.flatten(0, 1)[cls_index[:, None] + torch.arange(corners + 1, device=ids.device)]
        # The pooler reads the first token of its input, so it gets one token at a time.
        pooled = self._pool(summary_NKE.flatten(0, 1)[:, None])
        features_NKD: Tensor = self.proj(pooled).view(len(cls_index), corners + 1, -1)
        return features_NKD

    def _pool(self, hidden: Tensor) -> Tensor:
        pooled: Tensor = self.encoder.pooler(hidden)
        activation = getattr(self.encoder, "pooler_activation", None)  # ALBERT's pooler is the dense layer alone
        return pooled if activation is None else activation(pooled)

    @cached_property
    def supports_packing(self) -> bool:
        """Whether a text has the same features alone and beside another text in its row.

        It is tried once, on two short texts. An encoder that mixes neighboring tokens outside the attention, as
        MobileBERT does, would mix the texts.
        """
        device = self.proj.weight.device
        lengths = tuple(min(self.settings.corner_tokens + length, self.max_length) for length in (6, 4))
        usable = [token for token in range(min(self.vocab_size, 64)) if token != self.pad_id]
        ids = torch.tensor([usable[index % len(usable)] for index in range(sum(lengths))], device=device)
        text = torch.cat([torch.full((length,), index) for index, length in enumerate(lengths)]).to(device)
        position = torch.cat([torch.arange(length) for length in lengths]).to(device)
        cls_index = torch.tensor([0, lengths[0]], device=device)
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            alone = torch.cat([self.forward(text_ids[None]) for text_ids in ids.split(lengths)])
            packed = self.forward(ids[None], None, text[None], position[None], cls_index)
        for module, training in modes:
            module.training = training
        return bool((alone - packed).abs().max() <= PACKING_TOLERANCE * alone.abs().max())


class ImageTower(nn.Module):
    """A ViT or another image encoder. Its feature is pooled as the encoder was trained, without a projection.

    For a ViT that is the class token after the final norm (authors' code).
    """

    def __init__(self, vit: Any, pooling: Pooling = "class_token") -> None:
        super().__init__()
        self.vit = vit
        self.pooling = pooling
        config = vit.config
        self.dim: int = config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1]

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, D], not normalized, of pixels [N, 3, height, width]."""
        return pool(self.vit(pixel_values=pixels, **unmasked_inputs(self.vit.config, pixels)), self.pooling)


class TwoTowers(nn.Module):
    """The image tower, the text tower and the one learnable temperature τ (paper, Eq. 1–3).

    With `logit_bias` also SigLIP's learnable bias of the logits, and its initial scale (arXiv 2303.15343, Sec. 3).
    """

    MAX_SCALE = 100.0
    INITIAL_SCALE = 1 / 0.07
    SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0

    def __init__(self, image: ImageTower, text: TextTower, *, logit_bias: bool = False) -> None:
        super().__init__()
        self.image = image
        self.text = text
        scale = self.SIGMOID_SCALE if logit_bias else self.INITIAL_SCALE
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = nn.Parameter(torch.tensor(self.SIGMOID_BIAS)) if logit_bias else None
        self._locked: list[nn.Module] = []

    @property
    def scale(self) -> Tensor:
        """The factor 1/τ on cosine similarities, a scalar."""
        return self.log_scale.exp()

    def lock(self, *, image: bool, text: bool) -> None:
        """Freeze towers: no gradients and no dropout. The projection of a locked text tower still learns."""
        self.image.requires_grad_(not image)
        self.text.encoder.requires_grad_(not text)
        self._locked = [tower for tower, locked in ((self.image, image), (self.text.encoder, text)) if locked]

    def train(self, mode: bool = True) -> "TwoTowers":
        """As `nn.Module.train`, but locked towers stay in evaluation mode."""
        super().train(mode)
        for tower in self._locked:
            tower.eval()
        return self

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Clamp the scale to [1, 100], as the authors' code does after each step. SigLIP's, with a bias, is free."""
        if self.logit_bias is None:
            self.log_scale.clamp_(0.0, math.log(self.MAX_SCALE))


def build(description: Mapping[str, Any]) -> TwoTowers:
    """Towers with fresh weights from what `describe` returned.

    Models of earlier releases have no `pooling`: they read the first token, whatever it was.
    """
    from transformers import AutoConfig

    pooling = check_pooling(description.get("pooling", "class_token"))
    image = ImageTower(make_vit(AutoConfig.for_model(**description["image"]), pooling), pooling)
    settings = TextSettings(description["corner_tokens"], description["mask"])
    text = TextTower(make_encoder(AutoConfig.for_model(**description["text"])), image.dim, settings)
    return TwoTowers(image, text, logit_bias=description.get("logit_bias", False))


def describe(towers: TwoTowers) -> dict[str, Any]:
    """Both configurations, the text settings, the pooling of the image tower and a logit bias, as JSON holds them."""
    description = describe_parts(
        towers.image.vit.config, towers.text.encoder.config, towers.text.settings, towers.image.pooling
    )
    return description if towers.logit_bias is None else description | {"logit_bias": True}


def describe_parts(
    image_config: Any, text_config: Any, settings: TextSettings, pooling: Pooling = "class_token"
) -> dict[str, Any]:
    """As `describe`, of towers that are not built. A class token is not named, so that earlier releases read it."""
    description = {"image": image_config.to_dict(), "text": text_config.to_dict(), **asdict(settings)}
    return description if pooling == "class_token" else description | {"pooling": pooling}


def make_vit(config: Any, pooling: Pooling = "class_token") -> Any:
    """The image encoder of a configuration of transformers, with fresh weights; with a pooler only if it is used."""
    from transformers import AutoModel

    return AutoModel.from_config(config, **pooler_argument(config, pooling))


def make_encoder(config: Any) -> Any:
    """The BERT-like encoder of a configuration of transformers, with fresh weights."""
    from transformers import AutoModel

    return AutoModel.from_config(config, attn_implementation="sdpa")


def pooler_argument(config: Any, pooling: Pooling) -> dict[str, bool]:
    """The arguments that build an image encoder with or without a pooler. Empty for a class that has no such argument.

    A ViT's pooler is left out: it belongs to no image feature, and most files lack it.
    """
    from transformers import MODEL_MAPPING

    model: Any = MODEL_MAPPING.get(type(config), None)
    has_argument = model is not None and "add_pooling_layer" in inspect.signature(model).parameters
    return {"add_pooling_layer": pooling == "pooler"} if has_argument else {}
