"""Captioners of 100 to 200 million parameters in the real architectures, for benchmarks on a CPU.

A tiny model is bound by Python per step. With these, as with a model of 7B parameters on a GPU, an engine spends its
time on the arithmetic of the model. LLaVA and Qwen2.5-VL have random weights, so a benchmark sets the length of their
texts. InstructBLIP is the trained tiny one, widened so that it computes the same function: its captions are real ones,
of different lengths.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CAPTIONING_LLAVA = {
    "side": 128,
    "vision": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6},
    "text": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 12},
}
"""122 million parameters, of which 21 million read the image: as in a real LLaVA, most of the work is the text."""

QWEN_SIDE = 224
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if 'image' in part['type'] %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

WIDENING = 8
"""Factor of all widths of InstructBLIP. A power of two, so that dividing weights by it rounds none."""
WIDE_TEXT_LAYERS = 6


def write_llava(folder: Path, side: int, vision: Mapping[str, int], text: Mapping[str, int], dtype: str) -> str:
    """Write a LLaVA with random weights and the tokenizer of the tiny one.

    Args:
        folder: A new folder.
        side: Width and height of the images that the model reads; a patch is 16 pixels wide.
        vision: Sizes of the CLIP tower.
        text: Sizes of the Llama.
        dtype: Precision of the stored weights.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tiny = _tiny("tiny-llava")
    source = LlavaConfig.from_pretrained(tiny)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=side, patch_size=16, **vision),
        text_config=LlamaConfig(
            vocab_size=source.text_config.vocab_size,
            max_position_embeddings=1024,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=source.text_config.pad_token_id,
            **text,
        ),
        image_token_index=source.image_token_id,
        image_seq_length=(side // 16) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).to(getattr(torch, dtype)).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    if not any(name.startswith("vision_tower.vision_model.") for name in weights):  # as on the hub and in vLLM
        weights = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): w for name, w in weights.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _copy_files(tiny, folder, {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}})
    return str(folder)


def write_qwen(folder: Path, dtype: str) -> str:
    """Write a Qwen2.5-VL of 111 million random parameters, of which 22 million read the image.

    An image of QWEN_SIDE pixels, the largest that it reads, takes 64 tokens.

    Args:
        folder: A new folder.
        dtype: Precision of the stored weights.
    """
    import torch
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(_tiny("tiny-llava"))
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_TOKENS), "eos_token": "<|im_end|>"})
    tokenizer.chat_template = QWEN_CHAT_TEMPLATE
    ids = dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))
    text = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 12}
    text |= {"num_key_value_heads": 4, "max_position_embeddings": 1024, "vocab_size": len(tokenizer)}
    text |= {"bos_token_id": 1, "eos_token_id": ids["<|im_end|>"], "pad_token_id": tokenizer.pad_token_id}
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6}
    vision = {"depth": 8, "hidden_size": 384, "intermediate_size": 1536, "num_heads": 6, "patch_size": 14}
    vision |= {"out_hidden_size": 768, "window_size": 112, "fullatt_block_indexes": [3, 7]}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text | {"rope_parameters": rope},
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "size": {"shortest_edge": 56**2, "longest_edge": QWEN_SIDE**2},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    _write_json(folder / "preprocessor_config.json", images)
    return str(folder)


def write_instructblip(folder: Path, dtype: str) -> str:
    """Write the tiny InstructBLIP with all widths times WIDENING: 147 million parameters that write its captions.

    Every activation is repeated WIDENING times, which each matrix, repeated likewise and divided by that number, and
    each norm, reproduces. The language model also gets layers whose output is zero, up to WIDE_TEXT_LAYERS.

    Args:
        folder: A new folder.
        dtype: Precision of the stored weights.
    """
    import torch
    from safetensors.torch import load_file, save_file

    tiny = _tiny("tiny-instructblip")
    weights = load_file(tiny / "model.safetensors")
    layers = json.loads((tiny / "config.json").read_text())["text_config"]["num_hidden_layers"]
    for layer in range(layers, WIDE_TEXT_LAYERS):
        prefix = "language_model.model.layers."
        for name in [name for name in weights if name.startswith(f"{prefix}{layer % layers}.")]:
            is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
            new_name = name.replace(f"{prefix}{layer % layers}.", f"{prefix}{layer}.")
            weights[new_name] = torch.zeros_like(weights[name]) if is_output else weights[name]
    wide = {name: _widened(name, weight.float()).to(getattr(torch, dtype)) for name, weight in weights.items()}
    shutil.copytree(tiny, folder)
    save_file(wide, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tiny / "config.json").read_text()) | {"dtype": dtype}
    widths = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "encoder_hidden_size")
    for part in ("text_config", "vision_config", "qformer_config"):
        config[part] |= {width: config[part][width] * WIDENING for width in widths if width in config[part]}
    config["text_config"]["num_hidden_layers"] = WIDE_TEXT_LAYERS
    _write_json(folder / "config.json", config)
    return str(folder)


def _widened(name: str, weight: Any) -> Any:
    """The weight of the widened model in place of one of the tiny model."""
    if name.endswith("patch_embedding.weight"):
        return weight.repeat(WIDENING, 1, 1, 1)
    if "embed" in name or name == "query_tokens" or (weight.ndim == 1 and ".qkv." not in name):
        return weight.repeat(*[1] * (weight.ndim - 1), WIDENING)
    if name.endswith("lm_head.weight"):
        return weight.repeat(1, WIDENING) / WIDENING
    if name.endswith(".qkv.bias"):
        return weight.reshape(3, -1).repeat(1, WIDENING).flatten()
    if name.endswith(".qkv.weight"):
        parts = weight.reshape(3, -1, weight.shape[1]).repeat(1, WIDENING, WIDENING)
        return parts.flatten(0, 1) / WIDENING
    return weight.repeat(WIDENING, WIDENING) / WIDENING


def _tiny(name: str) -> Path:
    from lotlip_data.manifests.checkpoints.resolve import resolve

    return Path(resolve(name))


def _copy_files(source: Path, folder: Path, size: Mapping[str, Any]) -> None:
    """Copy the files of a tiny LLaVA beside the weights and config.json, with another size of images."""
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    image_processor = json.loads((source / "preprocessor_config.json").read_text()) | size
    processor = json.loads((source / "processor_config.json").read_text())
    processor["image_processor"] |= size
    _write_json(folder / "preprocessor_config.json", image_processor)
    _write_json(folder / "processor_config.json", processor)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1))
