"""Small tokenizers of the published kinds, trained on one writer's texts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BertTokenizer, LlamaTokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def llama_tokenizer(texts: Iterable[str]) -> LlamaTokenizer:
    """Llama's kind: BPE over ▁words with byte fallback, then `<image>` and `<pad>` at the end as on the hub."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AddedToken, LlamaTokenizer

    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    # Cutting at spaces and full stops while learning the merges keeps every token within one word.
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(".", "isolated"), pre_tokenizers.Split("\n", "isolated")]
    )
    special = ["<unk>", "<s>", "</s>", *BYTES]
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4096, special_tokens=special, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    tokenizer = LlamaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        add_bos_token=True,
        add_eos_token=False,
        model_max_length=1024,
    )
    tokenizer.add_tokens([AddedToken("<image>", normalized=False, special=True)], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": AddedToken("<pad>", normalized=False, special=True)})
    return tokenizer


def bert_tokenizer(texts: Iterable[str]) -> BertTokenizer:
    """The Q-Former's kind: lower-cased WordPiece over the words of the instructions, and single letters."""
    from transformers import BertTokenizer

    words = sorted({word.strip(".,:;?!'") for text in texts for word in text.lower().split()})
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(dict.fromkeys(pieces))})
