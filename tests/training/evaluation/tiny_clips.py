"""Tiny CLIPs with random weights, in the layouts of open_clip and of transformers."""

import json
import pathlib

import torch

CONTEXT = 20


def write_open_clip(folder: pathlib.Path) -> str:
    """Register a configuration with open_clip and write weights. Returns the name MODEL/WEIGHTS."""
    import open_clip

    folder.mkdir(parents=True)
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (folder / "tiny-open-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-open-clip.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-open-clip").state_dict(), folder / "weights.pt")
    return f"tiny-open-clip/{folder / 'weights.pt'}"


def write_clip(folder: pathlib.Path) -> str:
    """Write a CLIPModel with a tokenizer of single letters and an image processor. Returns the folder."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz.,0123456789"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(tokens) - 1
    ids = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, **ids, "vocab_size": len(tokens), "max_position_embeddings": CONTEXT},
        vision_config={**tower, "image_size": 32, "patch_size": 16},
        projection_dim=24,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)
