"""The tokenizer of a model as one tokenizer.json, which adds the special tokens, corner tokens included, by itself."""

import json
import re
from pathlib import Path
from typing import Any

from lotlip_data.manifests.checkpoints import conversion
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.data.tokenizer import BertTextTokenizer, TextTokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_SPECIAL_TOKENS = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token", "bos_token", "eos_token")


def form_of(tokenizer: TextTokenizer) -> str:
    """The form in which the tokenizer reads texts, as `text_forms.prepare` knows it."""
    return tokenizer.form if isinstance(tokenizer, BertTextTokenizer) else "plain"


def describe_tokenizer(tokenizer: TextTokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json for texts that `text_forms.prepare` has prepared.

    It makes the token ids of `tokenizer.encode`, but neither truncates nor pads.

    Raises:
        UserError: The tokenizer cannot be written as such a file.
    """
    backend = getattr(tokenizer.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"the model's {type(tokenizer.tokenizer).__name__} is computed in Python and cannot be written as a "
            f"{TOKENIZER}, so the model cannot be exported"
        )
    content: dict[str, Any] = json.loads(backend.to_str())
    content["truncation"] = content["padding"] = None
    if isinstance(tokenizer, BertTextTokenizer):
        content["post_processor"] = _bert_template(tokenizer)
    elif tokenizer.corner_tokens:
        raise UserError("register tokens behind the text of a CLIP or SigLIP cannot be exported")
    return content


def _bert_template(tokenizer: BertTextTokenizer) -> dict[str, Any]:
    """The post-processor that adds [CLS], the corner tokens and [SEP]."""
    hub_tokenizer = tokenizer.tokenizer
    first, last = (
        {"id": str(getattr(hub_tokenizer, name)), "ids": [int(getattr(hub_tokenizer, f"{name}_id"))]}
        for name in ("cls_token", "sep_token")
    )
    corners = [
        {"id": f"[Cor {number + 1}]", "ids": [tokenizer.vocab_size + number]}
        for number in range(tokenizer.corner_tokens)
    ]
    special = [first, *corners, last]
    parts = [{"SpecialToken": {"id": each["id"], "type_id": 0}} for each in special]
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    return {
        "type": "TemplateProcessing",
        "single": [*parts[:-1], text, parts[-1]],
        "pair": [*parts[:-1], text, parts[-1], second, parts[-1]],
        "special_tokens": {each["id"]: {**each, "tokens": [each["id"]]} for each in special},
    }


def split_at_full_stops(content: dict[str, Any], separator: str) -> dict[str, Any]:
    """The content of a tokenizer.json that brings plain texts into the authors' form by its normalizer.

    It makes the separating token of every ". ". The token is therefore looked for after the normalizer, which may write
    it in lower case: other spellings of it in a text, such as "[sep]", get spaces, so that they stay text.
    """
    other_spellings = f"(?!{re.escape(separator)})(?i:{re.escape(separator)})"
    steps = [
        {"type": "Replace", "pattern": {"Regex": other_spellings}, "content": " ".join(_split_ends(separator))},
        {"type": "Replace", "pattern": {"String": ". "}, "content": separator},
        *([content["normalizer"]] if content["normalizer"] else []),
    ]
    tokens = [
        {**token, "normalized": True} if token["content"] == separator else token for token in content["added_tokens"]
    ]
    return {**content, "normalizer": {"type": "Sequence", "normalizers": steps}, "added_tokens": tokens}


def reads_special_tokens_as_text(tokenizer: TextTokenizer) -> bool:
    """Whether what looks like a special token in a text is text. [SEP] is one that separates sub-captions."""
    return not isinstance(tokenizer, BertTextTokenizer)


def write_tokenizer(folder: Path, content: dict[str, Any], tokenizer: TextTokenizer, **settings: Any) -> None:
    """Write tokenizer.json and the tokenizer_config.json that transformers reads it with.

    Args:
        folder: The folder.
        content: The content of tokenizer.json.
        tokenizer: Gives the names of the special tokens, and the context length.
        settings: Further settings of tokenizer_config.json.
    """
    conversion.write_text(folder / TOKENIZER, json.dumps(content, ensure_ascii=False))
    hub_tokenizer = tokenizer.tokenizer
    special = {name: getattr(hub_tokenizer, name, None) for name in _SPECIAL_TOKENS}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.context_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": hub_tokenizer.padding_side if tokenizer.is_padded else "right",
        "split_special_tokens": reads_special_tokens_as_text(tokenizer),
        "clean_up_tokenization_spaces": False,
        **{name: str(token) for name, token in special.items() if token is not None},
        **settings,
    }
    conversion.write_text(folder / TOKENIZER_CONFIG, json.dumps(config, indent=2, ensure_ascii=False))


def _split_ends(separator: str) -> tuple[str, str, str]:
    """`[SEP]` as `[`, `sep` and `]`: the tokenizer finds the same tokens in it with spaces between."""
    return separator[0], separator[1:-1].lower(), separator[-1]
