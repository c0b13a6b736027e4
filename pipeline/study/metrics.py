"""Floating-point operations of a forward pass of a text tower, counted as they are done (paper, Fig. 4).

What can be found at most where a token limit makes texts equal, whatever a model has learned (of Fig. 4).
"""

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
    """Millions of operations on a text that is padded to each of these token limits, as the paper counts."""
    tower = _on_paper(load_model(config))
    return {limit: _count(tower, limit) / 1e6 for limit in limits}


def text_flops(model: str, texts: Sequence[str]) -> float:
    """Millions of operations on one of these texts, on average, without padding: as this trainer computes them."""
    loaded = LoTLIP.load(model)
    tower, lengths = _on_paper(loaded), [len(ids) for ids in loaded.tokenizer.encode(texts).ids]
    at = {length: _count(tower, length) for length in set(lengths)}
    return sum(at[length] for length in lengths) / len(lengths) / 1e6


def _on_paper(model: LoTLIP) -> TextTower:
    """The text tower on the meta device, with attention as plain products, all of which are counted."""
    from transformers import AutoConfig, AutoModel

    described: dict[str, Any] = towers.describe(model.towers)
    with torch.device("meta"):
        encoder = AutoModel.from_config(AutoConfig.for_model(**described["text"]), attn_implementation="eager")
        settings = TextSettings(described["corner_tokens"], described["mask"])
        return TextTower(encoder, int(described["image"]["hidden_size"]), settings)


def _count(tower: TextTower, length: int) -> int:
    """Operations of one text of so many tokens."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(torch.zeros(1, length, dtype=torch.int64))
    return int(counter.get_total_flops())


def most_findable(model: str, texts: Sequence[str]) -> dict[str, float]:
    """The highest R@1 both ways that is left, in percent, of texts that each have a picture of their own.

    Equal texts have equal features, and ties count against the model. So of such texts one at most finds its picture
    first (t2i), and no picture finds its text first (i2t).
    """
    tokens = [tuple(ids) for ids in LoTLIP.load(model).tokenizer.encode(texts).ids]
    counts = Counter(tokens)
    alone = sum(count == 1 for count in counts.values())
    return {"t2i": 100 * len(counts) / len(tokens), "i2t": 100 * alone / len(tokens)}
