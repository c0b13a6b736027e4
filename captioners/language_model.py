"""Takes the language model out of an InstructBLIP checkpoint, once, as a stock checkpoint that vLLM reads."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

PREFIX = "language_model."


def export_language_model(source: str, options: dict[str, Any], cache_dir: str) -> Path:
    """The folder in `cache_dir` with the language model of `source` (hub id or local folder), made if missing.

    The same checkpoint gives the same folder, a changed one another. One weight file at a time is in memory. The folder
    appears whole or not at all, so several actors of a machine may ask at once. Raises ValueError if the checkpoint has
    no safetensors or no decoder-only language model.
    """
    checkpoint = _local_folder(source, options)
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{source}: no .safetensors files; save the checkpoint as safetensors first")
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
        _write_config(checkpoint, unfinished)
        _write_weights(files, unfinished)
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():  # else another actor was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _local_folder(source: str, options: dict[str, Any]) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors"]
    return Path(snapshot_download(source, revision=options["revision"], allow_patterns=patterns))


def _write_config(checkpoint: Path, folder: Path) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text = AutoConfig.from_pretrained(checkpoint, local_files_only=True).text_config
    if text.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{checkpoint}: its language model, {text.model_type}, is not decoder-only; use transformers")
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]]
    text.save_pretrained(folder)


def _write_weights(files: list[Path], folder: Path) -> None:
    weight_map: dict[str, str] = {}
    size = 0
    for file in files:
        with safe_open(file, framework="pt") as weights:
            names = [name for name in weights.keys() if name.startswith(PREFIX)]  # noqa: SIM118 - not a dict
            ours = {name.removeprefix(PREFIX): weights.get_tensor(name) for name in names}
        if ours:
            save_file(ours, folder / file.name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(ours, file.name)
            size += sum(tensor.nbytes for tensor in ours.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
