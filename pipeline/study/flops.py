"""Floating-point operations of a text tower, counted as they are done (paper, Fig. 4)."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lotlip_data.manifests import storage
from lotlip_data.training.checkpoint import LoTLIP
from lotlip_data.training.towers import TextSettings, TextTower


def text_flops(model: str, texts: Sequence[str]) -> dict[str, float]:
    """Millions of operations of a forward pass of the model's text tower, a text.

    `flops.limit`: of a text padded to the token limit, as the paper counts; `flops.text`: the mean of these texts
    without padding, as this trainer computes them.
    """
    tokenizer = LoTLIP.load(model).tokenizer
    tower = _on_paper(json.loads(storage.read_bytes(storage.join(model, "config.json")))["towers"])
    lengths = [len(ids) for ids in tokenizer.encode(texts).ids]
    at = {length: _count(tower, length) for length in {tokenizer.context_length, *lengths}}
    return {
        "flops.limit": at[tokenizer.context_length] / 1e6,
        "flops.text": sum(at[length] for length in lengths) / len(lengths) / 1e6,
    }


def _on_paper(towers: dict[str, Any]) -> TextTower:
    """The text tower on the meta device, with attention as plain products, all of which are counted."""
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        encoder = AutoModel.from_config(AutoConfig.for_model(**towers["text"]), attn_implementation="eager")
        settings = TextSettings(towers["corner_tokens"], towers["mask"])
        return TextTower(encoder, int(towers["image"]["hidden_size"]), settings)


def _count(tower: TextTower, length: int) -> int:
    """Operations of one text of so many tokens."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(torch.zeros(1, length, dtype=torch.int64))
    return int(counter.get_total_flops())
