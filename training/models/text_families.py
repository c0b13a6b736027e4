"""How each family of text encoders is read: which token summarises a text, what sees what, and how the encoder is run.

BERT-like encoders summarise a text in its first token, [CLS]; the corner tokens follow it and take the next positions.
CLIP and SigLIP summarise a text in its last token; the corner tokens stand behind it, at its position, so that a
pre-trained table of positions stays as it is. CLIP is causal: its last token is the only one that has seen the whole
text. SigLIP pads every text to the context length and sees the padding, so padding is a part of the text.

Shapes: R rows of tokens, L tokens per row, E hidden size.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class TextFamily:
    """BERT-like encoders; the other families are subclasses. It has no state, and no weights."""

    summary_is_last: ClassVar[bool] = False
    """The last token summarises a text (True), or the first (False)."""
    is_causal: ClassVar[bool] = False
    """A token sees only those before it, and itself."""
    is_padded: ClassVar[bool] = False
    """Texts are padded to the context length by their tokenizer, and the padding is seen."""
    projection_has_bias: ClassVar[bool] = False
    prefix_token: ClassVar[int | None] = None
    """The token of padding that stands before the words of a text, where the words see it. None: they do not."""
    position_table: ClassVar[str | None] = "embeddings.position_embeddings"
    """The module that has the table of positions. None for an encoder without a table."""

    def positions(self, encoder: Any) -> tuple[int, int]:
        """The number of positions that a text can have, and the index of the first one in the encoder's table."""
        if self.position_table is None:
            return int(encoder.config.max_position_embeddings), 0
        table = encoder.get_submodule(self.position_table)
        # RoBERTa's table has rows for padding, up to and including the padding token's id. Texts cannot use them.
        first = 0 if table.padding_idx is None else table.padding_idx + 1
        return int(table.num_embeddings - first), first

    def end_id(self, config: Any) -> int | None:
        """The id of the token that ends a text, where it is the summary token. None elsewhere."""
        return None

    def model_class(self) -> Any:
        """The class of transformers that loads the encoder."""
        from transformers import AutoModel

        return AutoModel

    def build(self, config: Any) -> Any:
        """The encoder of a configuration, with fresh weights."""
        return self.model_class().from_config(config, attn_implementation="sdpa")

    def make_pooler(self, encoder: Any) -> nn.Module | None:
        """A fresh pooler for an encoder that is published without one. None if it has one, or needs none."""
        if getattr(encoder, "pooler", None) is None:
            raise ValueError(f"text tower: {type(encoder).__name__} has no pooler; use a BERT-like encoder with one")
        return None

    def pool(self, encoder: Any, hidden: Tensor) -> Tensor:
        """The pooled summaries [·, E] of hidden states [·, 1, E]."""
        pooled: Tensor = encoder.pooler(hidden)  # it reads the first token of its input
        activation = getattr(encoder, "pooler_activation", None)  # ALBERT's pooler is the dense layer alone
        return pooled if activation is None else activation(pooled)

    def hidden_states(self, encoder: Any, inputs: dict[str, Tensor], positions: Tensor | None, mask: Tensor) -> Tensor:
        """The last hidden states [R, L, E].

        Args:
            encoder: The encoder.
            inputs: `input_ids` [R, L], or `inputs_embeds` [R, L, E].
            positions: [R, L] indices of the encoder's table of positions. None: 0, 1, 2, … of each row.
            mask: [R, 1, L, L], as `attention_mask` makes it.
        """
        if positions is not None:
            inputs = {**inputs, "position_ids": positions}
        hidden: Tensor = encoder(**inputs, attention_mask=mask).last_hidden_state
        return hidden


class ModernBert(TextFamily):
    """ModernBERT: rotary positions, most layers see a window of neighbouring tokens, and no pre-trained pooler."""

    position_table = None

    def make_pooler(self, encoder: Any) -> nn.Module:
        """As BERT's: a dense layer and tanh."""
        dense = nn.Linear(encoder.config.hidden_size, encoder.config.hidden_size)
        nn.init.normal_(dense.weight, std=encoder.config.initializer_range)
        nn.init.zeros_(dense.bias)
        return nn.Sequential(dense, nn.Tanh())

    def hidden_states(self, encoder: Any, inputs: dict[str, Tensor], positions: Tensor | None, mask: Tensor) -> Tensor:
        # A mask that is given as one tensor would replace the windows too.
        place = torch.arange(mask.shape[-1], device=mask.device)
        near = (place[:, None] - place).abs() <= encoder.config.sliding_window
        far = torch.finfo(mask.dtype).min if mask.dtype != torch.bool else False
        masks = {"full_attention": mask, "sliding_attention": mask.masked_fill(~near, far)}
        hidden: Tensor = encoder(**inputs, position_ids=positions, attention_mask=masks).last_hidden_state
        return hidden


class Clip(TextFamily):
    """CLIP's text encoder."""

    summary_is_last = True
    is_causal = True
    prefix_token = 0
    """OpenAI's and Long-CLIP's tokenizers pad with zeros, and nothing masks them."""

    position_table = "embeddings.position_embedding"

    def end_id(self, config: Any) -> int | None:
        # Configurations of before transformers 4.31 name another token. CLIP's own is the last of its vocabulary.
        return int(config.vocab_size) - 1 if config.eos_token_id == _WRONG_END_ID else int(config.eos_token_id)

    def make_pooler(self, encoder: Any) -> None:
        return None

    def pool(self, encoder: Any, hidden: Tensor) -> Tensor:
        return hidden[:, 0]

    def hidden_states(self, encoder: Any, inputs: dict[str, Tensor], positions: Tensor | None, mask: Tensor) -> Tensor:
        # Part by part: the whole encoder takes no word embeddings, makes a mask and a feature of its own, and refuses
        # rows that are longer than its positions, of which packed texts use each one several times.
        words = inputs.get("inputs_embeds")
        if words is None:
            words = encoder.embeddings.token_embedding(inputs["input_ids"])
        embedded = words + encoder.embeddings.position_embedding(positions)
        outputs = encoder.encoder(inputs_embeds=embedded, attention_mask=mask, is_causal=False)
        hidden: Tensor = encoder.final_layer_norm(outputs.last_hidden_state)
        return hidden


class Siglip(Clip):
    """SigLIP's text encoder, of both versions. Its head is the projection."""

    is_causal = False
    is_padded = True
    projection_has_bias = True

    def end_id(self, config: Any) -> None:
        return None  # the padding behind the text is a part of it

    def model_class(self) -> Any:
        from transformers import SiglipTextModel  # which AutoModel does not know

        return SiglipTextModel

    def build(self, config: Any) -> Any:
        return self.model_class()._from_config(config, attn_implementation="sdpa")

    def make_pooler(self, encoder: Any) -> None:
        encoder.head = nn.Identity()  # the text tower has it as its projection


_WRONG_END_ID = 2

_FAMILIES: dict[str, TextFamily] = {
    "clip_text_model": Clip(),
    "siglip_text_model": Siglip(),
    "modernbert": ModernBert(),
}

_BERT_LIKE = TextFamily()


def family_of(model_type: str) -> TextFamily:
    """The family of a text encoder by the `model_type` of its configuration. Any that is not listed is BERT-like."""
    return _FAMILIES.get(model_type, _BERT_LIKE)
