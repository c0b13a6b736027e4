"""What is known of families of vision-language models before a checkpoint is loaded, by `model_type` in config.json.

These are the families of the table in docs/guides/choose-captioner.md. Of any other family, the checkpoint's processor
says the same when the engine starts.
"""

from dataclasses import dataclass

from lotlip_data.captioners.base import CaptionerConfig


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        pixel_limits: Whether its image processor has limits of the number of pixels (`min_pixels`, `max_pixels`).
        packages: Packages that its processor needs and that transformers does not require.
    """

    pixel_limits: bool = False
    packages: tuple[str, ...] = ()


FAMILIES = {
    "qwen2_5_vl": Family(pixel_limits=True),
    "qwen3_vl": Family(pixel_limits=True),
    "internvl": Family(),
    "idefics3": Family(),
    "smolvlm": Family(packages=("num2words",)),
    "gemma3": Family(),
    "llava": Family(),
    "llava_next": Family(),
    "llava_onevision": Family(),
    "paligemma": Family(),
    "mistral3": Family(),
}

MODEL_TYPES = {
    "Qwen/Qwen3-VL-4B-Instruct": "qwen3_vl",
    "Qwen/Qwen3-VL-8B-Instruct": "qwen3_vl",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "OpenGVLab/InternVL3-8B-hf": "internvl",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "smolvlm",
    "google/gemma-3-4b-it": "gemma3",
    "fancyfeast/llama-joycaption-beta-one-hf-llava": "llava",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "llava_onevision",
    "llava-hf/llava-v1.6-mistral-7b-hf": "llava_next",
}
"""Families of the presets' models (`captioners/presets.py`), which are known without the hub."""


def check_pixel_limits(config: CaptionerConfig, model_type: str | None) -> None:
    """Raise ValueError if a captioner sets limits of pixels that its model's family does not have.

    Args:
        config: The captioner.
        model_type: The family; None if it is not known.
    """
    family = FAMILIES.get(model_type or "")
    limits = [name for name in ("min_pixels", "max_pixels") if getattr(config, name) is not None]
    if family and limits and not family.pixel_limits:
        raise ValueError(
            f"captioner {config.name!r}: {' and '.join(limits)}: models of the family {model_type} have no limit of "
            "pixels; leave it out (`size` changes what their image processor makes of an image)"
        )


def packages_of(model_type: str | None) -> tuple[str, ...]:
    """The packages that a family's processor needs beside the project's; none for an unknown family."""
    return FAMILIES.get(model_type or "", Family()).packages
