"""The tokenizer of a model as one tokenizer.json, which adds the special tokens, corner tokens included, by itself."""

import json
import re
from pathlib import Path
from typing import Any

from lotlip_data.manifests.checkpoints import conversion
from lotlip_data.training.data.tokenizer import TextTokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_SPECIAL_TOKENS = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token", "bos_token", "eos_token")


def describe_tokenizer(tokenizer: TextTokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json for texts that `text_forms.prepare` has prepared.

    It makes the token ids of `tokenizer.encode`, but neither truncates nor pads.
    """
    hub_tokenizer = tokenizer.tokenizer
    content: dict[str, Any] = json.loads(hub_tokenizer.backend_tokenizer.to_str())
    content["truncation"] = content["padding"] = None
    first, last = ({"id": token, "ids": [token_id]} for token, token_id in _ends(hub_tokenizer))
    corners = [
        {"id": f"[Cor {number + 1}]", "ids": [tokenizer.vocab_size + number]}
        for number in range(tokenizer.corner_tokens)
    ]
    special = [first, *corners, last]
    parts = [{"SpecialToken": {"id": each["id"], "type_id": 0}} for each in special]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*parts[:-1], text, parts[-1]],
        "pair": [*parts[:-1], text, parts[-1], {"Sequence": {"id": "B", "type_id": 0}}, parts[-1]],
        "special_tokens": {each["id"]: {**each, "tokens": [each["id"]]} for each in special},
    }
    return content


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
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        **{name: str(token) for name, token in special.items() if token is not None},
        **settings,
    }
    conversion.write_text(folder / TOKENIZER_CONFIG, json.dumps(config, indent=2, ensure_ascii=False))


def _ends(hub_tokenizer: Any) -> list[tuple[str, int]]:
    """The token before a text and the one after it, with their ids."""
    return [
        (str(getattr(hub_tokenizer, name)), int(getattr(hub_tokenizer, f"{name}_id")))
        for name in ("cls_token", "sep_token")
    ]


def _split_ends(separator: str) -> tuple[str, str, str]:
    """`[SEP]` as `[`, `sep` and `]`: the tokenizer finds the same tokens in it with spaces between."""
    return separator[0], separator[1:-1].lower(), separator[-1]
