"""Texts into token ids, as the authors' code makes them: `[CLS] [Cor 1]…[Cor m] sub-caption [SEP] sub-caption … [SEP]`.

Two text forms. `authors` is the published code's: the text is cut at every ". " and nowhere else, so full stops inside
go and the last one stays. `punkt` cuts into sentences and keeps their full stops. A checkpoint records its form, and
whoever embeds texts with it uses the same.
"""

import functools
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.subcaptions import SplitMode

TextForm = Literal["authors", "punkt"]

_BLANKS = re.compile(r"\s+")


def clean(text: str) -> str:
    """`text` with broken encodings mended, HTML entities resolved (twice: the web escapes twice) and blanks joined."""
    import ftfy

    return _BLANKS.sub(" ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


def join_sub_captions(pieces: Sequence[str], mode: SplitMode) -> str:
    """The text whose sub-captions, split in `mode`, are `pieces`: the authors' rule drops full stops."""
    if mode == "punkt" or not pieces:
        return " ".join(pieces)
    return ". ".join(pieces) + "."


@dataclass(frozen=True)
class Encoded:
    """Token ids of N texts, without padding, and how many tokens, special ones included, each has when it is whole."""

    ids: list[list[int]]
    lengths: list[int]

    @property
    def cut(self) -> list[bool]:
        """Which of them were cut at the context length."""
        return [len(ids) < length for ids, length in zip(self.ids, self.lengths, strict=True)]


class TextTokenizer:
    """Any fast BERT-like tokenizer (one with [CLS], [SEP] and [PAD]) plus `corner_tokens` ids after [CLS].

    The corner ids are `vocab_size`, `vocab_size + 1`, …: extra rows of the encoder's word embeddings, which has
    `vocab_size` rows of its own. `context_length` counts every token, special ones included.
    """

    def __init__(
        self, tokenizer: Any, *, vocab_size: int, context_length: int, corner_tokens: int, form: TextForm = "authors"
    ) -> None:
        for name in ("cls_token_id", "sep_token_id", "pad_token_id"):
            if getattr(tokenizer, name, None) is None:
                raise ValueError(f"tokenizer: it has no {name.removesuffix('_id')}; use one of a BERT-like model")
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError("tokenizer: it is not a fast one; the folder must hold a tokenizer.json or a vocab.txt")
        if context_length < corner_tokens + 3:
            raise ValueError(
                f"context_length: {context_length} leaves no room for text beside [CLS], {corner_tokens} corner tokens "
                "and [SEP]; raise it"
            )
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.corner_tokens = corner_tokens
        self.form = form
        self.pad_id = int(tokenizer.pad_token_id)
        self._sep = int(tokenizer.sep_token_id)
        self._head = [int(tokenizer.cls_token_id), *range(vocab_size, vocab_size + corner_tokens)]

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The ids of each text, cut so that [SEP] is always the last of at most `context_length`."""
        bodies = self._authors(texts) if self.form == "authors" else self._punkt(texts)
        room = self.context_length - len(self._head) - 1
        return Encoded(
            ids=[[*self._head, *body[:room], self._sep] for body in bodies],
            lengths=[len(self._head) + len(body) + 1 for body in bodies],
        )

    def pad(self, ids: Sequence[Sequence[int]], length: int | None = None) -> Tensor:
        """int64 [N, length] (by default the longest's): the attention mask makes features independent of padding."""
        length = length or max(map(len, ids))
        return torch.tensor([[*row, *[self.pad_id] * (length - len(row))] for row in ids], dtype=torch.int64)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [N, context_length], padded like the authors'."""
        return self.pad(self.encode(texts).ids, self.context_length)

    def _authors(self, texts: Sequence[str]) -> list[list[int]]:
        # The order is the authors': cut first, clean afterwards. "[SEP]" in the text is the special token.
        joined = [clean(self.tokenizer.sep_token.join(text.split(". "))) for text in texts]
        return [encoding.ids for encoding in self._backend.encode_batch(joined, add_special_tokens=False)]

    def _punkt(self, texts: Sequence[str]) -> list[list[int]]:
        pieces = [subcaptions.split(clean(text), "punkt") for text in texts]
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
        """The Rust tokenizer, without the truncation and padding that a hub folder may have set."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return backend


def load_tokenizer(folder: str) -> Any:
    """The fast tokenizer of a local folder or hub id. Raises ValueError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, use_fast=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"text tower {folder!r}: no tokenizer can be read there ({error})") from error
