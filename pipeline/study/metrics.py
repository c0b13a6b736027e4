"""Metrics beyond recall and accuracy: FLOPs of the text tower, and the highest possible recall (Fig. 4)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lotlip_data.training.config import TrainConfig
from lotlip_data.training.models import towers
from lotlip_data.training.models.lotlip import LoTLIP, load_model
from lotlip_data.training.models.towers import TextSettings, TextTower


def padded_flops(config: TrainConfig, limits: Iterable[int]) -> dict[int, float]:
    """MFLOP of a forward pass over one text, per token limit to which the text is padded, as the paper counts."""
    tower = _meta_text_tower(load_model(config))
    return {limit: _count_flops(tower, limit) / 1e6 for limit in limits}


def mean_text_flops(model: str, texts: Sequence[str]) -> float:
    """Mean MFLOP of a forward pass over one of the texts, without padding, as the trainer computes them."""
    loaded = LoTLIP.load(model)
    tower, lengths = _meta_text_tower(loaded), [len(ids) for ids in loaded.tokenizer.encode(texts).ids]
    flops = {length: _count_flops(tower, length) for length in set(lengths)}
    return sum(flops[length] for length in lengths) / len(lengths) / 1e6


def recall_ceiling(model: str, texts: Sequence[str]) -> dict[str, float]:
    """The highest possible R@1 in percent, text to image and image to text, if each text has its own image.

    Texts that truncation makes equal have equal features, and ties count against the model. So at most one of several
    equal texts finds its image (t2i), and no image of these finds its text (i2t).
    """
    tokens = [tuple(ids) for ids in LoTLIP.load(model).tokenizer.encode(texts).ids]
    counts = Counter(tokens)
    unique = sum(count == 1 for count in counts.values())
    return {"t2i": 100 * len(counts) / len(tokens), "i2t": 100 * unique / len(tokens)}


def _meta_text_tower(model: LoTLIP) -> TextTower:
    """The text tower on the meta device, with attention as plain matrix products, all of which are counted."""
    from transformers import AutoConfig, AutoModel

    description: dict[str, Any] = towers.describe(model.towers)
    with torch.device("meta"):
        encoder = AutoModel.from_config(AutoConfig.for_model(**description["text"]), attn_implementation="eager")
        settings = TextSettings(description["corner_tokens"], description["mask"])
        return TextTower(encoder, model.towers.image.dim, settings)


def _count_flops(tower: TextTower, length: int) -> int:
    """FLOPs of a forward pass over one text of `length` tokens."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(torch.zeros(1, length, dtype=torch.int64))
    return int(counter.get_total_flops())
