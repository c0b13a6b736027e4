"""Leaves the corner tokens out of a model: they serve the training alone.

By the paper's mask nothing but a corner token itself sees it (Sec. 4.3), so the feature of a text does not depend on
them. They take the positions 1…m of their text, though. Without them the text tower has the rows of its position table
in another order: 0, m + 1, m + 2, …, and the rows 1…m at the end, where no text reaches. A text has m tokens fewer.
"""

import copy
from typing import Any

import torch

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
    config["context_length"] -= count
    smaller = lotlip.build(config, model.tokenizer.tokenizer, "the model without corner tokens")
    weights = dict(model.towers.state_dict())
    encoder = model.towers.text.encoder
    words, positions = encoder.get_input_embeddings(), encoder.embeddings.position_embeddings
    first = 0 if positions.padding_idx is None else positions.padding_idx + 1
    names = {id(tensor): name for name, tensor in model.towers.named_parameters()}
    weights[names[id(words.weight)]] = words.weight[:-count]
    before, corners, after = positions.weight.tensor_split([first + 1, first + 1 + count])
    weights[names[id(positions.weight)]] = torch.cat([before, after, corners])
    smaller.towers.load_state_dict(weights)
    smaller.towers.eval()
    change = (smaller.embed_texts(_PROBES) - model.embed_texts(_PROBES)).abs().max()
    return smaller if change <= MAX_CHANGE else None
