"""Tokenizes texts for BERT-like towers as `[CLS] [Cor 1]…[Cor m] sub-caption [SEP] sub-caption … [SEP]` (paper, Sec.
4.3), and for the towers of CLIP and SigLIP as those were trained, with the corner tokens at the end.

There are two text forms of the former. `authors` is that of the authors' code: it splits the text at every ". " and
nowhere else, so the full stops between sub-captions disappear and the last one stays. `punkt` splits into sentences and
keeps their full stops. A checkpoint records its form, and embedding with the checkpoint uses that form.

Shapes: N texts, m corner tokens.
"""

import abc
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lotlip_data.manifests import subcaptions
from lotlip_data.training.data.text_forms import TextForm, authors_form, clean_text

_SHORTEST_CONTEXT = 8


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of N texts."""

    ids: list[list[int]]
    """Without padding, truncated at the context length."""
    lengths: list[int]
    """Tokens of each text before truncation, special tokens included."""

    @property
    def truncated(self) -> list[bool]:
        """Whether each text was truncated at the context length."""
        return [len(ids) < length for ids, length in zip(self.ids, self.lengths, strict=True)]


class TextTokenizer(abc.ABC):
    """Texts to the token ids that a text tower reads.

    The ids of the m corner tokens are `vocab_size`, `vocab_size + 1`, …: rows that the text tower adds to the encoder's
    `vocab_size` word embeddings.
    """

    is_padded = False
    """Whether padding to the context length is a part of each text."""

    def __init__(
        self, tokenizer: Any, vocab_size: int, context_length: int, corner_tokens: int, form: TextForm
    ) -> None:
        """
        Args:
            tokenizer: A tokenizer of transformers.
            vocab_size: Number of word embeddings of the encoder, without the corner tokens.
            context_length: Largest number of tokens of a text, special tokens included.
            corner_tokens: m.
            form: How a text is split into sub-captions.

        Raises:
            ValueError: The tokenizer does not fit the encoder, or the context leaves no room for text.
        """
        check_vocabulary(tokenizer, vocab_size, "tokenizer")
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.corner_tokens = corner_tokens
        self.form = form
        self.pad_id = int(tokenizer.pad_token_id)
        self._corners = list(range(vocab_size, vocab_size + corner_tokens))

    @abc.abstractmethod
    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """The token ids of each text, truncated to `context_length`; the token that ends a text is kept."""

    def room(self, ids: Sequence[int]) -> int:
        """The number of tokens by which the context is longer than the text with these ids."""
        return self.context_length - len(ids)

    def pad(self, ids: Sequence[Sequence[int]], length: int | None = None) -> Tensor:
        """Pad token ids to int64 [N, length]. Default length: the longest text's. Features do not depend on it."""
        length = length or max(map(len, ids))
        return torch.tensor([[*row, *[self.pad_id] * (length - len(row))] for row in ids], dtype=torch.int64)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [N, context_length], padded as in the authors' code."""
        return self.pad(self.encode(texts).ids, self.context_length)


class BertTextTokenizer(TextTokenizer):
    """Any fast BERT-like tokenizer (one with [CLS], [SEP] and [PAD]), with the corner tokens after [CLS].

    [SEP] stands between the sub-captions of a text, and ends it. The context length counts the corner tokens, which
    take positions of their own.
    """

    def __init__(
        self, tokenizer: Any, *, vocab_size: int, context_length: int, corner_tokens: int, form: TextForm = "authors"
    ) -> None:
        for name in ("cls_token_id", "sep_token_id", "pad_token_id"):
            if getattr(tokenizer, name, None) is None:
                raise ValueError(
                    f"tokenizer: has no {name.removesuffix('_id')}; use the tokenizer of a BERT-like model"
                )
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError("tokenizer: is not a fast tokenizer; add a tokenizer.json or a vocab.txt to its folder")
        if context_length < corner_tokens + 3:
            raise ValueError(
                f"context_length: {context_length} leaves no room for text after [CLS], {corner_tokens} corner tokens "
                f"and [SEP]; use at least {corner_tokens + 3}"
            )
        super().__init__(tokenizer, vocab_size, context_length, corner_tokens, form)
        self._sep = int(tokenizer.sep_token_id)
        self._prefix = [int(tokenizer.cls_token_id), *self._corners]

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        bodies = self._encode_authors(texts) if self.form == "authors" else self._encode_punkt(texts)
        room = self.context_length - len(self._prefix) - 1
        return EncodedTexts(
            ids=[[*self._prefix, *body[:room], self._sep] for body in bodies],
            lengths=[len(self._prefix) + len(body) + 1 for body in bodies],
        )

    def _encode_authors(self, texts: Sequence[str]) -> list[list[int]]:
        joined = [authors_form(text, self.tokenizer.sep_token) for text in texts]
        return [encoding.ids for encoding in self._backend.encode_batch(joined, add_special_tokens=False)]

    def _encode_punkt(self, texts: Sequence[str]) -> list[list[int]]:
        pieces = [subcaptions.split(clean_text(text), "punkt") for text in texts]
        flat = [piece for sentences in pieces for piece in sentences]
        encoded = iter(self._backend.encode_batch(flat, add_special_tokens=False))
        bodies = []
        for sentences in pieces:
            body: list[int] = []
            for position in range(len(sentences)):
                body += [self._sep] * (position > 0) + next(encoded).ids
            bodies.append(body)
        return bodies

    @functools.cached_property
    def _backend(self) -> Any:
        """The Rust tokenizer, without the truncation and padding that a hub folder may set."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return backend


class ClipTextTokenizer(TextTokenizer):
    """The tokenizer of a CLIP or a SigLIP, with the corner tokens behind the text.

    The text is read as it was in pre-training, after `clean_text`: nothing marks where a sub-caption ends, so `form` is
    without effect. What looks like a special token in a text is text. The context length does not count the corner
    tokens, since they take no positions of their own.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocab_size: int,
        context_length: int,
        corner_tokens: int,
        form: TextForm = "authors",
        is_padded: bool = False,
    ) -> None:
        """`is_padded`: padding to the context length is a part of each text, as SigLIP sees it."""
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(tokenizer, name, None) is None:
                raise ValueError(f"tokenizer: has no {name.removesuffix('_id')}; use the tokenizer of the same model")
        if context_length < _SHORTEST_CONTEXT:
            raise ValueError(
                f"context_length: {context_length} leaves no room for text; use at least {_SHORTEST_CONTEXT}"
            )
        super().__init__(tokenizer, vocab_size, context_length, corner_tokens, form)
        self.is_padded = is_padded
        self._end = int(tokenizer.eos_token_id)

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        cleaned = [clean_text(text) for text in texts]
        # Neither truncation nor padding: a hub folder may set both, and lengths are those before truncation.
        options = {"truncation": False, "padding": False, "split_special_tokens": True}
        encoded: list[list[int]] = self.tokenizer(cleaned, **options)["input_ids"] if cleaned else []
        return EncodedTexts(
            ids=[[*self._fit(ids), *self._corners] for ids in encoded],
            lengths=[len(ids) + self.corner_tokens for ids in encoded],
        )

    def room(self, ids: Sequence[int]) -> int:
        return self.context_length + self.corner_tokens - len(ids)

    def _fit(self, ids: list[int]) -> list[int]:
        """The ids of a text, truncated before the token that ends it, and padded if padding is a part of the text."""
        if len(ids) > self.context_length:
            end = ids[-1:] if ids[-1] == self._end else []
            ids = [*ids[: self.context_length - len(end)], *end]
        if not self.is_padded:
            return ids
        padding = [self.pad_id] * (self.context_length - len(ids))
        return [*padding, *ids] if self.tokenizer.padding_side == "left" else [*ids, *padding]


def load_tokenizer(folder: str) -> Any:
    """The fast tokenizer of a local folder or hub id. Raises ValueError if there is none, or one without words."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged tokenizer.json
        raise ValueError(f"text tower {folder!r}: cannot load a tokenizer from there ({error})") from error
    if not has_words(tokenizer):
        raise ValueError(f"text tower {folder!r}: its tokenizer has no vocabulary; add the tokenizer's files")
    return tokenizer


def has_words(tokenizer: Any) -> bool:
    """Whether the tokenizer knows words. Without a vocabulary file, transformers makes one that knows none."""
    ids = tokenizer("a photo of the number 1.", add_special_tokens=False)["input_ids"]
    return bool(set(ids).difference(tokenizer.all_special_ids))


def check_vocabulary(tokenizer: Any, vocab_size: int, where: str) -> None:
    """Raise ValueError if the tokenizer has a token that the `vocab_size` word embeddings of its model do not have.

    Args:
        tokenizer: A tokenizer of transformers.
        vocab_size: Number of word embeddings of the model.
        where: What has the tokenizer, for the message.
    """
    token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if number >= vocab_size:
        raise ValueError(
            f"{where}: has the token {token!r} with number {number}, but the model has word embeddings for "
            f"{vocab_size} tokens only; use the tokenizer and the weights of one model, or remove the added tokens"
        )
