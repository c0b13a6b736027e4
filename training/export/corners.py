"""Leaves the corner tokens out of a model: they serve the training alone.

By the paper's mask nothing but a corner token itself sees it (Sec. 4.3), so the feature of a text does not depend on
them. Behind a text of CLIP's they take no positions. In a BERT-like tower they take the positions 1…m of their text;
without them the tower has the rows of its position table in another order: 0, m + 1, m + 2, …, and the rows 1…m at the
end, where no text reaches. A text has m tokens fewer.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from lotlip_data.training.models import lotlip
from lotlip_data.training.models.lotlip import LoTLIP

MAX_CHANGE = 1e-5
"""Largest difference of unit features that another order of float32 sums explains."""
_PROBES = ["a", "two red cars. a dog on a beach. " * 3, "a dog on a beach. " * 100]


def without_corner_tokens(model: LoTLIP) -> LoTLIP | None:
    """The same model without corner tokens; the model itself if it has none.

    None if the features of texts depend on them: register tokens (no mask), and text towers that mix tokens outside the
    attention or place them by more than a table of positions. The features are compared.
    """
    count = model.tokenizer.corner_tokens
    if not count:
        return model
    config: Any = copy.deepcopy(model.config())
    if not config["towers"]["mask"]:
        return None
    config["towers"]["corner_tokens"] = 0
    family = model.towers.text.family
    if not family.summary_is_last:
        config["context_length"] -= count
    smaller = lotlip.build(config, model.tokenizer.tokenizer, "the model without corner tokens")
    weights = dict(model.towers.state_dict())
    encoder = model.towers.text.encoder
    names = {id(tensor): name for name, tensor in model.towers.named_parameters()}
    words = encoder.get_input_embeddings().weight
    weights[names[id(words)]] = words[:-count]
    if family.position_table and not family.summary_is_last:
        positions = encoder.get_submodule(family.position_table).weight
        weights[names[id(positions)]] = _moved(positions, family.positions(encoder)[1] + 1, count)
    smaller.towers.load_state_dict(weights)
    smaller.towers.eval()
    change = (smaller.embed_texts(_PROBES) - model.embed_texts(_PROBES)).abs().max()
    return smaller if change <= MAX_CHANGE else None


def _moved(table: Tensor, start: int, count: int) -> Tensor:
    """The table with `count` rows from `start` on at its end."""
    before, moved, after = table.tensor_split([start, start + count])
    return torch.cat([before, after, moved])
