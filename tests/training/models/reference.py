"""Numbers recorded from the authors' published code: see `tests/goldens/lotlip_text`."""

import json
from importlib import resources
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from lotlip_data.training.data.tokenizer import BertTextTokenizer
from lotlip_data.training.models.towers import TextSettings, TextTower
from tests.support.paths import GOLDENS

FOLDER = GOLDENS / "lotlip_text"
VOCABULARY = resources.files("lotlip_data.manifests") / "vocab" / "bert-base-uncased-vocab.txt"
META = json.loads((FOLDER / "meta.json").read_text())
EXPECTED = dict(np.load(FOLDER / "expected.npz"))


def tokenizer(corner_tokens: int, **options: Any) -> BertTextTokenizer:
    settings = {"vocab_size": META["vocab_size"], "context_length": META["context_length"], **options}
    return BertTextTokenizer(BertTokenizerFast(str(VOCABULARY)), corner_tokens=corner_tokens, **settings)


def text_tower(corner_tokens: int, attention: str) -> TextTower:
    """The tiny tower of the recording. Word embeddings that no recorded text uses are random."""
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    config = BertConfig(**{name: META[name] for name in sizes}, attn_implementation=attention)
    tower = TextTower(BertModel(config), META["hidden_size"], TextSettings(corner_tokens))
    weights = load_file(FOLDER / "weights.safetensors")
    words = tower.encoder.embeddings.word_embeddings.weight.detach().clone()
    words[weights["bert.embeddings.word_embeddings.row_ids"]] = weights["bert.embeddings.word_embeddings.rows"]
    if corner_tokens:
        words[META["vocab_size"] :] = weights[f"m{corner_tokens}.corner_embeddings"]
    state = {name.removeprefix("bert."): value for name, value in weights.items() if name.startswith("bert.")}
    state = {name: value for name, value in state.items() if not name.endswith(("row_ids", "rows"))}
    tower.encoder.load_state_dict({**state, "embeddings.word_embeddings.weight": words}, strict=True)
    tower.proj.load_state_dict({"weight": weights["proj.weight"]})
    return tower.eval()


def expected(name: str) -> torch.Tensor:
    return torch.from_numpy(EXPECTED[name])
