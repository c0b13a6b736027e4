"""Read, write and compare the weights of a checkpoint: `.bin` or safetensors, in one file or in several with an index.

No code in a checkpoint is executed.
"""

import errno
import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.storage import replacing

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor → its shape."""

INDEX = "model.safetensors.index.json"
_LAYOUTS = ((INDEX, "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin"))


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights, in order; safetensors if the folder has both formats.

    Raises:
        UserError: If there are none, or if a file that an index names is missing.
    """
    for index, single in _LAYOUTS:
        if (folder / index).is_file():
            return _indexed(folder, index)
        if (folder / single).is_file():
            return [folder / single]
    if stray := sorted([*folder.glob("*-of-*.bin"), *folder.glob("*-of-*.safetensors")]):
        index = _LAYOUTS[0 if stray[0].suffix == ".safetensors" else 1][0]
        raise UserError(f"{folder}: {stray[0].name} is one of several files, but {index} is missing; fetch it too")
    raise UserError(f"{folder}: no weights here; expected {_LAYOUTS[0][1]} or {_LAYOUTS[1][1]}, or an index of several")


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Name → tensor. Tensors are mapped from disk, so they take memory only while they are read.

    Raises:
        UserError: If the file is truncated, is no weight file, or contains anything but tensors.
    """
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as weights:
                return {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - not a dict
        except SafetensorError as error:
            _raise_if_no_weights(file)
            raise UserError(f"{_damaged(file)} ({error})") from error
    content = read_pickle(file)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{file}: is not a table of named tensors, as a model's weights are")
    return dict(content)


def read_pickle(file: Path) -> Any:
    """The object that torch.save wrote, its tensors mapped from disk. Raises UserError as `read_weights` does.

    Files of torch before 1.6 are no zip archives and cannot be mapped. They are read into memory.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        _raise_if_no_weights(file)
        raise UserError(
            f"{file}: holds code or objects besides tensors, which could be executed on loading; nothing was. "
            "Download the checkpoint from a source that you trust, as safetensors if possible"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a truncated zip archive
            raise
        _raise_if_no_weights(file)
        if unsupported := next((name for name in _OLD_FORMATS if name in str(error)), None):
            raise UserError(
                f"{file}: is a {unsupported}, which cannot be read without executing code in it; save the weights "
                "again as safetensors"
            ) from error
        raise UserError(f"{_damaged(file)} ({str(error).splitlines()[0]})") from error


_OLD_FORMATS = ("legacy .tar format", "TorchScript archive")
"""Formats of torch, as its error messages name them, that it does not read with `weights_only`."""


def _raise_if_no_weights(file: Path) -> None:
    """Raise UserError if the file is a pointer of Git LFS or a web page, which was downloaded in place of weights."""
    with file.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{file}: is a pointer of Git LFS, not the weights; run `git lfs pull` in its folder")
    if start.startswith((b"<!doctype", b"<html")):
        raise UserError(f"{file}: is a web page, not the weights; download the file itself")


def _damaged(file: Path) -> str:
    return f"{file}: is damaged or was not fetched whole ({file.stat().st_size:,} bytes); fetch it again"


def read_index(folder: Path, index: str) -> dict[str, str]:
    """Name of a tensor → name of its file, from the index of several weight files.

    Raises:
        UserError: If the index is damaged.
    """
    try:
        weight_map = json.loads((folder / index).read_text())["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / index}: has no weight_map of names and files ({error!r}); fetch it again"
        ) from error


def write_weights(file: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file atomically. Raises OSError as writing does."""
    with replacing(file) as part:
        try:
            save_file(_separate(weights), part, metadata={"format": "pt"})
        except SafetensorError as error:  # how safetensors reports an OSError
            raise OSError(f"{part}: {error}") from error
        part.chmod(0o644)  # safetensors creates files that only their owner can read


def write_pickle(file: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write the weights with torch.save, atomically, as other tools' `.pt` and `.bin` files."""
    with replacing(file) as part:
        torch.save(_separate(weights), part)


def write_index(folder: Path, weight_map: Mapping[str, str], size: int) -> None:
    """Write the index of several safetensors files.

    Args:
        folder: Folder of the files.
        weight_map: Name of a tensor → name of its file.
        size: Size of all tensors in bytes.
    """
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def differences(expected: Shapes, actual: Shapes) -> list[str]:
    """Compare a checkpoint's weights with a model's.

    Args:
        expected: The shapes of the model's parameters.
        actual: The shapes of the checkpoint's tensors.

    Returns:
        One line per kind of difference; empty if the checkpoint fits the model.
    """
    missing = sorted(expected.keys() - actual.keys())
    unknown = sorted(actual.keys() - expected.keys())
    wrong = [name for name in sorted(expected.keys() & actual.keys()) if expected[name] != actual[name]]
    return [
        *_summary("weights are missing", missing),
        *_summary("weights have no place in the model", unknown),
        *_summary(
            "weights have the wrong shape", [f"{name} {actual[name]} instead of {expected[name]}" for name in wrong]
        ),
    ]


def _summary(what: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    return [f"{len(names)} {what}, such as {names[0]}"] if names else []


def _separate(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, none of which shares memory with another: safetensors rejects those, which a `.bin` can contain."""
    own: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        storage = tensor.untyped_storage()
        shared = storage.nbytes() > tensor.nbytes or storage.data_ptr() in seen
        seen.add(storage.data_ptr())
        own[name] = tensor.contiguous().clone() if shared else tensor.contiguous()
    return own


def _indexed(folder: Path, index: str) -> list[Path]:
    weight_map = read_index(folder, index)
    files = [folder / name for name in sorted(set(weight_map.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{folder}: {index} names {', '.join(missing)}, which is missing; fetch it too")
    return files


def model_shapes(model_class: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of a transformers model. The model is built on the device `meta`, without memory.

    Args:
        model_class: Name of the class in transformers.
        config: Configuration of the model.
    """
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, model_class)(config)
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
