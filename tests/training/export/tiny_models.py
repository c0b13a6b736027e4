"""Untrained models with small towers, as folders, and images and texts of every kind."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.models.lotlip import LoTLIP, load_model
from tests.training.run_fixture import TINY, write_towers

TEXTS = [
    "a red square",
    "A red square is left of a blue circle. It is 3.5 m wide, says Dr. Smith. The ground is green.",
    "",
    "A red square. " * 40 + "The end.",
    "A [SEP] and a [sep]. Red &amp;lt; blue \u2014 caf\u00e9.",
    "\u4e00\u4e2a\u7ea2\u8272\u65b9\u5757\u3002 A circle.",
]
IMAGES = [
    render(sample_scene(0), 96),
    render(sample_scene(1), 200).resize((131, 97)),
    render(sample_scene(2), 64).convert("L").resize((64, 99)),
    Image.radial_gradient("L").convert("RGBA"),
]


def write_model(folder: Path, **settings: Any) -> LoTLIP:
    """Write an untrained model to `folder`. `settings` are those of its training. Returns the model."""
    towers = write_towers(folder.parent / f"{folder.name}-towers")
    torch.manual_seed(0)
    load_model(make_config(**{**towers, "context_length": 40, **settings})).save(str(folder))
    return LoTLIP.load(str(folder))


def write_roberta(folder: Path) -> str:
    """Write a RoBERTa whose tokens are bytes. Returns the folder."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    RobertaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(**TINY, vocab_size=len(tokens), max_position_embeddings=66, type_vocab_size=1)
    RobertaModel(config).save_pretrained(folder)
    return str(folder)
