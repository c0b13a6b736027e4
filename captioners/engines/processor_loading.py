"""Loads the processor of any vision-language model: its image processor and its tokenizer.

The image processor is the one that computes with Pillow where transformers has one, so that torchvision need not be
installed, and texts do not depend on whether it is. The part of a processor that reads videos is left out: it always
needs torchvision.
"""

import json
from pathlib import Path
from typing import Any

CONFIG_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Files that can name a checkpoint's processor, in the order in which transformers reads them."""


def load_processor(source: str, load_options: dict[str, Any], model_config: Any) -> Any:
    """Load a checkpoint's processor.

    Args:
        source: Local folder or hub id.
        load_options: Keyword arguments for `from_pretrained`, such as `revision` and `trust_remote_code`.
        model_config: The content of config.json, as transformers' class.

    Raises:
        ValueError: The checkpoint has no processor with an image processor and a tokenizer.
    """
    import transformers

    name = _processor_name(source, load_options, model_config)
    processor_class = getattr(transformers, name, None) if name else None
    if isinstance(processor_class, type) and issubclass(processor_class, transformers.ProcessorMixin):
        loader = _for_images(processor_class)
    else:
        loader = transformers.AutoProcessor  # of the repository's own code
    processor: Any = loader.from_pretrained(source, backend="pil", **load_options)
    for part in ("tokenizer", "image_processor"):
        if not hasattr(processor, part):
            raise ValueError(
                f"{source}: has no processor with a {part} but a {type(processor).__name__}; check its "
                "processor_config.json, such as processor_class, and preprocessor_config.json"
            )
    return processor


def names_normalization(source: str, load_options: dict[str, Any]) -> bool:
    """Whether a checkpoint's files have the mean and the deviation of its pixels.

    Otherwise the image processor's class has them, where vLLM does not look if it normalises on the GPU.
    """
    settings: dict[str, Any] = {}
    for name in reversed(CONFIG_FILES):
        content = _read_json(source, name, load_options)
        settings |= content | content.get("image_processor", {})
    return "image_mean" in settings and "image_std" in settings


def _processor_name(source: str, load_options: dict[str, Any], model_config: Any) -> str | None:
    """The name of the processor's class: the checkpoint's word, or transformers' for this type of model."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    for name in CONFIG_FILES:
        if isinstance(processor := _read_json(source, name, load_options).get("processor_class"), str):
            return processor
    return PROCESSOR_MAPPING_NAMES.get(model_config.model_type)


def _read_json(source: str, name: str, load_options: dict[str, Any]) -> dict[str, Any]:
    """The content of one of a checkpoint's files; empty if there is none."""
    from transformers.utils.hub import cached_file

    hub_options = {name: value for name, value in load_options.items() if name != "trust_remote_code"}
    file = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub_options)
    content = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return content if isinstance(content, dict) else {}


def _for_images(processor_class: Any) -> Any:
    """A processor's class without the part that reads videos."""

    class ImageProcessor(processor_class):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if "video" not in name]

        @classmethod
        def _get_arguments_from_pretrained(cls, *arguments: Any, **options: Any) -> list[Any]:
            parts = iter(super()._get_arguments_from_pretrained(*arguments, **options))
            return [None if "video" in name else next(parts) for name in super().get_attributes()]

    if not any("video" in name for name in processor_class.get_attributes()):
        return processor_class
    ImageProcessor.__name__, ImageProcessor.__module__ = processor_class.__name__, processor_class.__module__
    return ImageProcessor
