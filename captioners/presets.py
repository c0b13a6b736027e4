"""Published captioners by short name, with their licences and sizes.

Revisions are commits, so that a preset means the same model next year. No commit of ShareGPT4V is known here: a run
records it when it first uses the model.
"""

from typing import Any

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.sizing import FP8_PER_CHANNEL, ModelSizes
from lotlip_data.manifests.settings.captioners import preset_name

_MODELS: dict[str, dict[str, Any]] = {
    "instructblip": {
        "model": "Salesforce/instructblip-vicuna-7b",
        "revision": "19103d0c5b5263c8a7891012e08573439fb6607f",
    },
    "llava": {
        "model": "llava-hf/llava-1.5-7b-hf",
        "revision": "b234b804b114d9e37bb655e11cbbb5f5e971b7a9",
    },
    "sharegpt4v": {"model": "Lin-Chen/ShareGPT4V-7B"},
}

_FP8: dict[str, Any] = {"quantization": FP8_PER_CHANNEL, "kv_cache_dtype": "fp8_hopper"}

_MEGAPIXEL = 1024 * 1024
"""Of Qwen's image processors. Their own limit is 16 times as much, and so would be the memory that vLLM keeps free."""

_VLMS: dict[str, dict[str, Any]] = {
    "qwen3-vl-4b": {
        "model": "Qwen/Qwen3-VL-4B-Instruct",
        "revision": "ebb281ec70b05090aa6165b016eac8ec08e71b17",
        "max_pixels": _MEGAPIXEL,
    },
    "qwen3-vl-8b": {
        "model": "Qwen/Qwen3-VL-8B-Instruct",
        "revision": "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
        "max_pixels": _MEGAPIXEL,
    },
    "qwen2.5-vl-7b": {
        "model": "Qwen/Qwen2.5-VL-7B-Instruct",
        "revision": "cc594898137f460bfe9f0759e9844b3ce807cfb5",
        "max_pixels": _MEGAPIXEL,
    },
    "internvl3-8b": {
        "model": "OpenGVLab/InternVL3-8B-hf",
        "revision": "259a3b64a14623c0ec91a045cb43f7c5af5fa6af",
    },
    "smolvlm2": {
        "model": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "revision": "482adb537c021c86670beed01cd58990d01e72e4",
    },
    "gemma-3-4b": {
        "model": "google/gemma-3-4b-it",
        "revision": "093f9f388b31de276ce2de164bdc2081324b9767",
    },
    "joycaption": {
        "model": "fancyfeast/llama-joycaption-beta-one-hf-llava",
        "revision": "ebf414ea497a020da0f82df3913e5b6cb8e9663a",
        "system": "You are a helpful image captioner.",
        "prompt": "Write a long descriptive caption for this image in a formal tone.",
    },
    "llava-onevision": {
        "model": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "revision": "0d50680527681998e456c7b78950205bedd8a068",
    },
    "llava-1.6": {
        "model": "llava-hf/llava-v1.6-mistral-7b-hf",
        "revision": "52320fb52229c8d942b1dcb8b63b3dc8087bc83b",
    },
}

PRESETS: dict[str, CaptionerConfig] = {
    **{kind: CaptionerConfig(name=kind, kind=kind, **settings) for kind, settings in _MODELS.items()},
    **{
        f"{kind}-fp8": CaptionerConfig(name=f"{kind}-fp8", kind=kind, **settings, **_FP8)
        for kind, settings in _MODELS.items()
    },
    **{name: CaptionerConfig(name=preset_name(name), kind="vlm", **settings) for name, settings in _VLMS.items()},
    **{f"tiny-{kind}": CaptionerConfig(name=f"tiny-{kind}", kind=kind, model=f"tiny-{kind}") for kind in _MODELS},
}
"""Configuration by short name: LoTLIP's three captioners, the same in FP8, which write other texts, vision-language
models of 2025, and tiny models that are trained on synthetic scenes."""

LICENCES = {
    "Salesforce/instructblip-vicuna-7b": "Vicuna's (LLaMA 1: research only)",
    "llava-hf/llava-1.5-7b-hf": "Llama 2 Community Licence",
    "Lin-Chen/ShareGPT4V-7B": "Llama 2 Community Licence; trained on texts of GPT-4V",
    "Qwen/Qwen3-VL-4B-Instruct": "Apache-2.0",
    "Qwen/Qwen3-VL-8B-Instruct": "Apache-2.0",
    "Qwen/Qwen2.5-VL-7B-Instruct": "Apache-2.0",
    "OpenGVLab/InternVL3-8B-hf": "MIT; its language model, Qwen2.5-7B, Apache-2.0",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "Apache-2.0",
    "google/gemma-3-4b-it": "Gemma Terms of Use, to be accepted on the hub",
    "fancyfeast/llama-joycaption-beta-one-hf-llava": "none stated; its language model, Llama 3.1 Community Licence",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "Apache-2.0",
    "llava-hf/llava-v1.6-mistral-7b-hf": "Apache-2.0",
}
"""Licence of the weights, by model, as its page on the hub states it. Read the page before you publish captions."""

VLM_SIZES = {
    "Qwen/Qwen3-VL-4B-Instruct": ModelSizes(4_437_815_808, 36, 8, 128, 300, image_parameters=415_347_712),
    "Qwen/Qwen3-VL-8B-Instruct": ModelSizes(8_767_123_696, 36, 8, 128, 300, image_parameters=576_388_336),
    "Qwen/Qwen2.5-VL-7B-Instruct": ModelSizes(8_292_166_656, 28, 4, 128, 391, image_parameters=676_550_144),
    "OpenGVLab/InternVL3-8B-hf": ModelSizes(7_944_373_760, 28, 4, 128, 3330, image_parameters=331_552_768),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": ModelSizes(2_246_784_880, 24, 32, 64, 1088, image_parameters=434_220_912),
    "google/gemma-3-4b-it": ModelSizes(4_300_079_472, 34, 4, 256, 256, image_parameters=419_816_304),
    "fancyfeast/llama-joycaption-beta-one-hf-llava": ModelSizes(
        8_464_752_496, 32, 8, 128, 730, image_parameters=434_491_248
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": ModelSizes(
        8_029_890_080, 28, 4, 128, 2929, image_parameters=414_732_320
    ),
    "llava-hf/llava-v1.6-mistral-7b-hf": ModelSizes(7_566_747_648, 32, 8, 128, 2340, image_parameters=324_491_264),
}
"""Sizes of the presets' models, with the tokens of an image of 640×480 pixels."""


def licence_of(config: CaptionerConfig) -> str | None:
    """The licence of a captioner's model, if it is that of a preset."""
    return LICENCES.get(config.model)
