"""The image tower and the text tower: an image encoder and a text encoder of transformers.

Shapes, also as suffixes of names:
    N  images or texts
    R  rows of tokens (one text per row, or several: see packing.py)
    L  tokens per row
    K  features per text: 1 + m, of the summary token ([CLS]) and of m corner tokens
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

from lotlip_data.training.models.corner_attention import attention_mask
from lotlip_data.training.models.pooling import Pooling, check_pooling, pool, unmasked_inputs
from lotlip_data.training.models.row_layout import RowLayout, TextPlacement
from lotlip_data.training.models.text_families import family_of

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
    """Encoder, pooler and projection. The family of the encoder says which token summarises a text.

    The summary token ([CLS], or the last token of CLIP and SigLIP) and the corner tokens behind it share pooler and
    projection (authors' code). The corner tokens are m extra rows of the encoder's word embeddings, each drawn from
    N(0, 0.02) on its own. A BERT-like encoder has a pooler (dense + tanh) and a projection without bias.
    """

    def __init__(self, encoder: Any, dim: int, settings: TextSettings = TextSettings()) -> None:
        super().__init__()
        config = encoder.config
        self.family = family_of(config.model_type)
        if self.family.is_causal and settings.corner_tokens and not settings.mask:
            raise ValueError(
                "text tower: register tokens stand behind the text, where no token of a causal encoder sees them; use "
                "corner tokens, or none"
            )
        self.settings = settings
        self.encoder = encoder
        self.pooler = self.family.make_pooler(encoder)
        self.vocab_size = int(config.vocab_size)
        self.pad_id = int(config.pad_token_id or 0)
        self.max_length, self._first_position = self.family.positions(encoder)
        self.placement = TextPlacement(settings.corner_tokens, self.family.summary_is_last)
        self.proj = nn.Linear(config.hidden_size, dim, bias=self.family.projection_has_bias)
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

    def forward(self, ids: Tensor, embeddings: Tensor | None = None, layout: RowLayout | None = None) -> Tensor:
        """Features of texts.

        Args:
            ids: [R, L] token ids.
            embeddings: [R, L, E] word embeddings of the ids, if they have been looked up already.
            layout: Where the texts stand in the rows. None: each row is one text, which padding may follow.

        Returns:
            [N, K, D] features, not normalized; feature 0 of a text is that of its summary token.
        """
        corners = self.settings.corner_tokens
        layout = layout or self.placement.padded(*self._find_texts(ids))
        mask = attention_mask(
            layout.text,
            layout.rank,
            corners if self.settings.mask else 0,
            causal=self.family.is_causal,
            eager=self.encoder.config._attn_implementation == "eager",
            dtype=self.proj.weight.dtype,
        )
        inputs = {"input_ids": ids} if embeddings is None else {"inputs_embeds": embeddings}
        hidden_RLE = self.family.hidden_states(self.encoder, inputs, layout.position + self._first_position, mask)
        summary = layout.summary[:, None] + torch.arange(corners + 1, device=ids.device)
        summary_NKE = hidden_RLE.flatten(0, 1)[summary]
        # A pooler reads the first token of its input, so it gets one token at a time.
        pooled = self._pool(summary_NKE.flatten(0, 1)[:, None])
        features_NKD: Tensor = self.proj(pooled).view(layout.summary.shape[0], corners + 1, -1)
        return features_NKD

    def _pool(self, hidden: Tensor) -> Tensor:
        if self.pooler is None:
            return self.family.pool(self.encoder, hidden)
        pooled: Tensor = self.pooler(hidden[:, 0])
        return pooled

    def _find_texts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the tokens [R, L] belong to the text of their row (bool), and where its summary token is ([R])."""
        rows, length = ids.shape
        corners = self.settings.corner_tokens
        if not self.family.summary_is_last:
            return ids != self.pad_id, ids.new_zeros(rows)
        if self.family.is_padded:
            return torch.ones_like(ids, dtype=torch.bool), ids.new_full((rows,), length - 1 - corners)
        end = self.family.end_id(self.encoder.config)
        assert end is not None  # the summary token of such a family ends the text
        summary = ids.eq(end).int().argmax(dim=1)  # the first one: the padding may be the same token
        return torch.arange(length, device=ids.device) <= (summary + corners)[:, None], summary

    @cached_property
    def supports_packing(self) -> bool:
        """Whether a text has the same features alone and beside another text in its row.

        It is tried once, on two short texts. An encoder that mixes neighboring tokens outside the attention, as
        MobileBERT does, would mix the texts.
        """
        device = self.proj.weight.device
        lengths = [min(self.settings.corner_tokens + length, self.max_length) for length in (6, 4)]
        usable = [token for token in range(min(self.vocab_size, 64)) if token != self.pad_id]
        ids = torch.tensor([usable[index % len(usable)] for index in range(sum(lengths))], device=device)
        modes = [(module, module.training) for module in self.modules()]
        self.eval()

        def features(row: Tensor, row_lengths: list[int]) -> Tensor:
            layout = self.placement.rows([row_lengths], len(row)).to(device)
            return self.forward(row[None], None, layout)

        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            alone = torch.cat(
                [features(*text) for text in zip(ids.split(lengths), ([n] for n in lengths), strict=True)]
            )
            packed = features(ids, lengths)
        for module, training in modes:
            module.training = training
        return bool((alone - packed).abs().max() <= PACKING_TOLERANCE * alone.abs().max())


class ImageTower(nn.Module):
    """A ViT or another image encoder. Its feature is pooled as the encoder was trained.

    For a ViT that is the class token after the final norm, without a projection (authors' code). The image encoder of a
    CLIP has the projection that it was trained with, if the training starts from the whole CLIP.
    """

    def __init__(self, vit: Any, pooling: Pooling = "class_token", projection: int | None = None) -> None:
        """`projection` is D, the width of the projected feature. Default: no projection."""
        super().__init__()
        self.vit = vit
        self.pooling = pooling
        config = vit.config
        width: int = config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1]
        self.dim = projection or width
        self.proj = nn.Linear(width, projection, bias=False) if projection else None

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, D], not normalized, of pixels [N, 3, height, width]."""
        feature = pool(self.vit(pixel_values=pixels, **unmasked_inputs(self.vit.config, pixels)), self.pooling)
        return feature if self.proj is None else self.proj(feature)


class TwoTowers(nn.Module):
    """The image tower, the text tower and the one learnable temperature τ (paper, Eq. 1–3).

    For the sigmoid loss also SigLIP's learnable bias of the logits (arXiv 2303.15343, Sec. 3.2).
    """

    MAX_SCALE = 100.0
    INITIAL_SCALE = 1 / 0.07
    SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0
    """Initial scale and bias of the sigmoid loss (SigLIP)."""

    def __init__(
        self, image: ImageTower, text: TextTower, log_scale: float | None = None, logit_bias: float | None = None
    ) -> None:
        """
        Args:
            image: The image tower.
            text: The text tower.
            log_scale: The logarithm of 1/τ. Default: that of 1/0.07, the authors' initial value.
            logit_bias: The initial bias. None: there is none.
        """
        super().__init__()
        self.image = image
        self.text = text
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.INITIAL_SCALE) if log_scale is None else log_scale))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(logit_bias))
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
    vit = make_vit(AutoConfig.for_model(**description["image"]), pooling)
    image = ImageTower(vit, pooling, description.get("projection"))
    settings = TextSettings(description["corner_tokens"], description["mask"])
    text = TextTower(make_encoder(AutoConfig.for_model(**description["text"])), image.dim, settings)
    return TwoTowers(image, text, logit_bias=0.0 if description.get("logit_bias") else None)


def describe(towers: TwoTowers) -> dict[str, Any]:
    """Both configurations, the text settings, pooling and projection of the image tower, and whether there is a logit
    bias, as JSON holds them."""
    image, text = towers.image, towers.text
    description = describe_parts(image.vit.config, text.encoder.config, text.settings, image.pooling)
    description |= {} if image.proj is None else {"projection": image.dim}
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
    """The text encoder of a configuration of transformers, with fresh weights."""
    return family_of(config.model_type).build(config)


def pooler_argument(config: Any, pooling: Pooling) -> dict[str, bool]:
    """The arguments that build an image encoder with or without a pooler. Empty for a class that has no such argument.

    A ViT's pooler is left out: it belongs to no image feature, and most files lack it.
    """
    from transformers import MODEL_MAPPING

    model: Any = MODEL_MAPPING.get(type(config), None)
    has_argument = model is not None and "add_pooling_layer" in inspect.signature(model).parameters
    return {"add_pooling_layer": pooling == "pooler"} if has_argument else {}
