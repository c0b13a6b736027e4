"""Counts of texts as in Tables 1 and 6 of the paper: sub-captions per text, and BERT tokens without special tokens."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import islice
from typing import Any

from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.subcaptions import SplitMode

BATCH = 1000
"""Number of texts that are tokenised at once."""
BIN = 16
"""Width of a bin of the histograms in tokens."""

CountTokens = Callable[[Sequence[str]], list[int]]
"""Function from texts to the number of tokens of each."""


def bert_tokens(vocab: str | None = None) -> CountTokens:
    """A function that counts bert-base-uncased tokens.

    Args:
        vocab: Path of a `vocab.txt`. Default: the vocabulary that comes with the project.
    """
    from tokenizers import BertWordPieceTokenizer

    path = vocab or str(resources.files("lotlip_data.manifests") / "vocab" / "bert-base-uncased-vocab.txt")
    tokenizer = BertWordPieceTokenizer(path, lowercase=True)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoded.ids) for encoded in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return count


@dataclass
class TextTally:
    """Sums over texts that are not blank."""

    texts: int = 0
    sub_captions: int = 0
    tokens: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    """Number of texts by length: key k counts `BIN`·k to `BIN`·(k + 1) − 1 tokens."""

    def __iadd__(self, other: "TextTally") -> "TextTally":
        self.texts += other.texts
        self.sub_captions += other.sub_captions
        self.tokens += other.tokens
        self.flags.update(other.flags)
        self.lengths.update(other.lengths)
        return self

    def add(self, tokens: int, sub_captions: int = 0) -> None:
        """Count one text with these numbers of tokens and sub-captions."""
        self.texts += 1
        self.tokens += tokens
        self.sub_captions += sub_captions
        self.lengths[tokens // BIN] += 1

    def to_dict(self) -> dict[str, Any]:
        """texts, sub_captions_per_text and tokens_per_text. Without texts, the means are 0."""
        return {
            "texts": self.texts,
            "sub_captions_per_text": self.sub_captions / max(1, self.texts),
            "tokens_per_text": self.tokens / max(1, self.texts),
        }

    def histogram(self) -> dict[str, int]:
        """Number of texts by range of tokens, such as `48-63`, in order, without empty ranges."""
        return {f"{BIN * key}-{BIN * (key + 1) - 1}": self.lengths[key] for key in sorted(self.lengths)}


def tally(texts: Iterable[str], mode: SplitMode, count_tokens: CountTokens) -> TextTally:
    """Sums over the texts that are not blank, split into sub-captions by the rule `mode`."""
    total = TextTally()
    filled = (text for text in texts if text.strip())
    while batch := list(islice(filled, BATCH)):
        for text, tokens in zip(batch, count_tokens(batch), strict=True):
            total.add(tokens, len(subcaptions.split(text, mode)))
    return total
