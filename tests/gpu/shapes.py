"""Checkpoints at the shapes of the published models, without their weights: no network, no download.

LLaVA has no weights at all (`load_format: dummy`). InstructBLIP's are zeros in a sparse file, which takes no disk: its
image half and the export of its language model read files.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

from tests.captioners import tiny_checkpoints
from tests.support.published import published

VOCABULARY = 32_000  # Vicuna's
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def write_llava(folder: Path) -> Path:
    """LLaVA-1.5-7B without weights."""
    config = published("llava-1.5-7b-hf")[0]["config"]
    _write_tokenizer(
        folder,
        [f"<extra_{number}>" for number in range(config["image_token_index"] - VOCABULARY)],
        image_token="<image>",
    )
    (folder / "config.json").write_text(json.dumps(config))
    size = config["vision_config"]["image_size"]
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": config["vision_config"]["patch_size"],
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        "num_additional_image_tokens": 1,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def write_instructblip(folder: Path) -> Path:
    """InstructBLIP-Vicuna-7B with all weights zero."""
    golden, shapes = published("instructblip-vicuna-7b")
    config = golden["config"]
    _write_tokenizer(folder, [f"<extra_{number}>" for number in range(config["image_token_index"] - VOCABULARY)])
    _write_tokenizer(folder / "qformer_tokenizer", [], size=config["qformer_config"]["vocab_size"] - 1)
    (folder / "config.json").write_text(json.dumps(config))
    image_processor = {"image_processor_type": "BlipImageProcessor", "size": {"height": 224, "width": 224}}
    processor = {"processor_class": "InstructBlipProcessor", "num_query_tokens": config["num_query_tokens"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    write_zeros(folder / "model.safetensors", shapes, config["text_config"]["torch_dtype"])
    return folder


def write_zeros(file: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    """Write a safetensors file of zeros, as a sparse file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    width, end = {"float16": 2, "bfloat16": 2, "float32": 4}[dtype], 0
    for name, shape in shapes.items():
        start, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as output:
        output.write(struct.pack("<Q", len(encoded)) + encoded)
        output.truncate(8 + len(encoded) + end)


def _write_tokenizer(folder: Path, extra: list[str], size: int = VOCABULARY, **named: str) -> None:
    """A tokenizer of `size` words, which has a text for every token that random weights generate, and `<image>`."""
    words = [*tiny_checkpoints.SPECIAL[:-1], *dict.fromkeys(tiny_checkpoints.WORDS.split())]
    words += [f"word{number}" for number in range(size - len(words))]
    tiny_checkpoints.write_tokenizer(folder, [*words, *extra, "<image>"], **named)
