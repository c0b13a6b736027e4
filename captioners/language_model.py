"""Takes the language model out of an InstructBLIP checkpoint, once, as a stock checkpoint that vLLM reads."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lotlip_data.captioners.convert_names import model_shapes
from lotlip_data.manifests.checkpoint_files import (
    differences,
    read_weights,
    weight_files,
    write_index,
    write_weights,
)

PREFIX = "language_model."


def export_language_model(source: str, options: dict[str, Any], cache_dir: str) -> Path:
    """The folder in `cache_dir` with the language model of `source` (hub id or local folder), made if missing.

    The same checkpoint gives the same folder, a changed one another. Weights are copied from where they are mapped, so
    memory does not grow with them. The folder appears whole or not at all, so several actors of a machine may ask at
    once. Raises ValueError if the checkpoint has no weights, not those of its language model, or if that is not
    decoder-only.
    """
    checkpoint = _local_folder(source, options)
    files = weight_files(checkpoint)
    identity = [
        str(checkpoint.resolve()),
        *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files),
    ]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    target = Path(cache_dir).expanduser() / "language_models" / key
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{key}-"))
    try:
        config = _text_config(checkpoint)
        _write_weights(files, unfinished, config)
        config.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():  # else another actor was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def stock_name(name: str) -> str | None:
    """What a tensor of InstructBLIP is called in its language model alone; None if it is of the image half.

    None, too, for the rotary frequencies that old versions of transformers saved with each layer.
    """
    if not name.startswith(PREFIX) or name.endswith(".rotary_emb.inv_freq"):
        return None
    return name.removeprefix(PREFIX)


def _local_folder(source: str, options: dict[str, Any]) -> Path:
    """Where the checkpoint lies. Of a repository with both formats, safetensors alone are fetched."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    def fetch(ending: str) -> Path:
        patterns = ["*.json", f"*.{ending}"]
        return Path(snapshot_download(source, revision=options["revision"], allow_patterns=patterns))

    folder = fetch("safetensors")
    return folder if any(folder.glob("*.safetensors")) else fetch("bin")


def _text_config(checkpoint: Path) -> Any:
    """The language model's configuration, as of a checkpoint of its own."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    whole: Any = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    text = whole.text_config
    if text.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{checkpoint}: its language model, {text.model_type}, is not decoder-only; use transformers")
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]]
    text.dtype = text.dtype or whole.dtype
    return text


def _write_weights(files: list[Path], folder: Path, config: Any) -> None:
    weight_map: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    size = 0
    for file in files:
        weights = read_weights(file)
        ours = {new: weights[old] for old in weights if (new := stock_name(old)) is not None}
        if ours:
            name = f"{file.stem}.safetensors"
            write_weights(folder / name, ours)
            weight_map |= dict.fromkeys(ours, name)
            shapes |= {new: tuple(tensor.shape) for new, tensor in ours.items()}
            size += sum(tensor.nbytes for tensor in ours.values())
    if problems := differences(model_shapes(config.architectures[0], config), shapes):
        raise ValueError(f"{files[0].parent}: its language model is not whole: {'; '.join(problems)}; fetch it again")
    write_index(folder, weight_map, size)
