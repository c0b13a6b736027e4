"""Caption pictures with a saved tiny captioner through transformers alone, to measure it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lotlip_data.world.recipes.prompts import PROMPTS


class Captioner:
    """A captioner's folder, loaded in float32."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoProcessor, InstructBlipForConditionalGeneration, LlavaForConditionalGeneration

        model_type = json.loads((folder / "config.json").read_text())["model_type"]
        kind = InstructBlipForConditionalGeneration if model_type == "instructblip" else LlavaForConditionalGeneration
        self.model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.prompt = PROMPTS[folder.name.removeprefix("tiny-")]

    def __call__(self, images: Sequence[Image.Image]) -> list[tuple[str, bool]]:
        """Greedy text of each image, and whether the model ended it itself within 256 tokens."""
        inputs = self.processor(images=list(images), text=[self.prompt] * len(images), return_tensors="pt")
        tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=256)[:, inputs["input_ids"].shape[1] :]
        tokenizer = self.processor.tokenizer
        ended = (tokens == tokenizer.eos_token_id).any(1).tolist()
        return list(zip(tokenizer.batch_decode(tokens, skip_special_tokens=True), ended, strict=True))
