"""Tiny image–text models with random weights, in the layouts in which transformers publishes CLIP and SigLIP."""

from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz.,0123456789<|>"
POSITIONS = 24
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 16}
WIDTH = 24


def randomize(model: Any) -> Any:
    """All parameters random, biases and norms too, so that no part of a model is without effect."""
    for name, parameter in model.named_parameters():
        if parameter.ndim:
            torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.1)
    return model.eval()


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


def write_clip(folder: Path, **text: Any) -> Any:
    """A CLIPModel, its tokenizer of single letters and its image processor. Returns the model."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    tokenizer = clip_tokenizer()
    end = tokenizer.eos_token_id
    ids = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    settings = {**TOWER, **ids, "vocab_size": end + 1, "max_position_embeddings": POSITIONS, **text}
    torch.manual_seed(0)
    model = randomize(CLIPModel(CLIPConfig(text_config=settings, vision_config=VISION, projection_dim=WIDTH)))
    model.logit_scale.data.fill_(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def siglip_tokenizer() -> Any:
    """A tokenizer of single letters in the class of SigLIP 2's, which ends a text with <eos> and pads behind it."""
    from tokenizers.processors import TemplateProcessing
    from transformers import Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = {token: index for index, token in enumerate([*special, "▁", *LETTERS])}
    tokenizer = Siglip2Tokenizer(vocab=vocabulary, merges=[], padding_side="right")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer


def write_siglip(folder: Path) -> Any:
    """A SiglipModel, its tokenizer and its image processor. Returns the model."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tokenizer = siglip_tokenizer()
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS, "projection_size": 32}
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    model = randomize(SiglipModel(SiglipConfig(text_config={**text, **ids}, vision_config=VISION)))
    model.logit_scale.data.fill_(3.0)
    model.logit_bias.data.fill_(-9.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model
