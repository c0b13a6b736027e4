"""Whether a folder has the files that a vision-language model needs. No file but the index of the weights is read."""

import json
from pathlib import Path

from lotlip_data.manifests.checkpoints.hub import ModelUnavailable

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
REMEDY = "copy or download the model again, with all its files"


def check_files(folder: Path, model: str, has_own_code: bool = False) -> None:
    """Check that a folder, such as an incomplete copy, lacks no file without which a model does not load.

    Args:
        folder: The model's folder.
        model: Its name in messages.
        has_own_code: Whether code in the folder loads the model, so that tokenizer and image processor may have other
            names.

    Raises:
        ModelUnavailable: It lacks one, which the message names.
    """
    if (index := _index(folder)) and (missing := _missing_parts(index)):
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelUnavailable(f"{model}: lacks weights that {index.name} lists: {shown}", REMEDY)
    if not any(True for pattern in WEIGHTS for _ in folder.glob(pattern)):
        raise ModelUnavailable(f"{model}: has no weights, such as model.safetensors", REMEDY)
    for what, names in (("tokenizer", TOKENIZERS), ("image processor", IMAGE_PROCESSORS)):
        if not has_own_code and not any((folder / name).exists() for name in names):
            raise ModelUnavailable(f"{model}: has no {what}: none of {', '.join(names)}", REMEDY)


def _index(folder: Path) -> Path | None:
    """The index of the weights that transformers and vLLM read: safetensors come first, and one file before several."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (folder / stem).exists():
            return None
        if (index := folder / f"{stem}.index.json").exists():
            return index
    return None


def _missing_parts(index: Path) -> list[str]:
    """The files that an index of weights lists and that are not beside it."""
    try:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelUnavailable(f"{index}: is damaged", REMEDY) from None
    return sorted(part for part in parts if not (index.parent / part).exists())
