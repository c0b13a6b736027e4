"""Both engines do the same with several texts, stop strings and size limits, and vLLM runs adapters."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lotlip_data.captioners.base import TextRequest
from lotlip_data.captioners.registry import load_engine
from tests.captioners import tiny_vlms
from tests.captioners.engines.test_vlm_families import captioner, engine_texts, mixed_images, plain_generate

PROMPTS = {
    "long": "Describe the image in detail.",
    "short": {"prompt": "A red circle", "max_new_tokens": 6, "system": "You are helpful"},
    "cut": {"prompt": "Describe the tree", "stop": ["bright", "dog"]},
}


class ReadyInputs:
    """An engine whose images are prepared already."""

    def __init__(self, engine):
        self.window, self.caption = engine.window, engine.caption

    def prepare(self, prepared):
        return prepared


@pytest.mark.slow
def test_several_texts_stop_strings_and_sizes_mean_the_same_to_both_engines(tmp_path, caption_all):
    folder = str(tiny_vlms.write("qwen3-vl", tmp_path / "model"))
    config = captioner(folder, max_pixels=64 * tiny_vlms.PATCH**2).replace(prompts=PROMPTS)
    captions = {}
    for name in ("transformers", "vllm"):
        engine = load_engine(config, name)
        requests = [TextRequest(text, text.prompt) for text in config.texts]
        prepared = [text for image in mixed_images(24) for text in engine.prepare_texts(image, requests)]
        captions[name] = caption_all(ReadyInputs(engine), prepared)
        engine.close()
    assert captions["vllm"] == captions["transformers"]
    long, short, cut = (captions["vllm"][offset::3] for offset in range(3))
    assert len({caption.text for caption in long}) > 16
    assert {caption.tokens for caption in short} == {6}
    assert {caption.finish_reason for caption in cut} == {"stop", "length"}
    assert not any("bright" in caption.text or "dog" in caption.text for caption in cut)


def write_adapter(folder):
    """A LoRA adapter of rank 4 for every query projection of the language model, in PEFT's format."""
    folder.mkdir()
    names = [f"model.language_model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)]
    torch.manual_seed(5)
    weights = {}
    for name in names:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        weights |= {f"{stem}.lora_A.weight": torch.randn(4, 64), f"{stem}.lora_B.weight": torch.randn(64, 4)}
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return names, weights


@pytest.mark.slow
def test_an_adapter_in_vllm_gives_the_texts_of_the_merged_weights(tmp_path, caption_all):
    folder = tiny_vlms.write("qwen3-vl", tmp_path / "model")
    names, adapter = write_adapter(tmp_path / "adapter")
    images = mixed_images(16)
    config = captioner(str(folder), lora=str(tmp_path / "adapter"))
    texts = engine_texts(caption_all, config, "vllm", images)
    plain = plain_generate(str(folder), images)
    weights = load_file(folder / "model.safetensors")
    for name in names:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        weights[name] += 2 * adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert texts == plain_generate(str(folder), images)
    assert texts != plain
