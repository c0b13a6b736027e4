"""The weights of a checkpoint folder, `.bin` or safetensors, in one file or in many with an index."""

import errno
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.storage import replacing

Shapes = Mapping[str, tuple[int, ...]]

INDEX = "model.safetensors.index.json"
_LAYOUTS = ((INDEX, "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin"))


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, in order; safetensors where there are both formats.

    Raises UserError if there are none, or if a file that an index names is missing.
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
    """Name → tensor, mapped from disk: memory is used only while a tensor is read. Nothing in the file is executed.

    Raises UserError for a file that is cut short, is no weight file, or holds anything but tensors.
    """
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as weights:
                return {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - not a dict
        except SafetensorError as error:
            raise UserError(f"{_damaged(file)} ({error})") from error
    found = read_pickle(file)
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserError(f"{file}: is not a table of named tensors, as a model's weights are")
    return dict(found)


def read_pickle(file: Path) -> Any:
    """What torch.save wrote, tensors mapped from disk. Nothing in the file is executed; raises UserError as above."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file}: holds code or objects besides tensors, which could do anything when it is loaded; it was not. "
            "Fetch the checkpoint from somebody you trust, as safetensors if there is a choice"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which a zip's end before its beginning gives
            raise
        raise UserError(f"{_damaged(file)} ({str(error).splitlines()[0]})") from error


def _damaged(file: Path) -> str:
    return f"{file}: is damaged or was not fetched whole ({file.stat().st_size:,} bytes); fetch it again"


def read_index(folder: Path, index: str) -> dict[str, str]:
    """Tensor name → file name, as an index of several weight files says. Raises UserError for one that is broken."""
    try:
        weight_map = json.loads((folder / index).read_text())["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / index}: has no weight_map of names and files ({error!r}); fetch it again"
        ) from error


def write_weights(file: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file that is there whole, on disk, or not at all. Raises OSError as writing does."""
    with replacing(file) as part:
        try:
            save_file(_separate(weights), part, metadata={"format": "pt"})
        except SafetensorError as error:  # its way of saying OSError
            raise OSError(f"{part}: {error}") from error
        part.chmod(0o644)  # safetensors creates files that only their owner can read


def write_pickle(file: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """The same as torch.save writes it, which other tools' `.pt` and `.bin` are."""
    with replacing(file) as part:
        torch.save(_separate(weights), part)


def write_index(folder: Path, weight_map: Mapping[str, str], size: int) -> None:
    """The index of several safetensors files. size: bytes of all tensors."""
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def differences(expected: Shapes, found: Shapes) -> list[str]:
    """What keeps `found` from being the weights of the model that `expected` describes, a line each."""
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    wrong = [name for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]
    return [
        *_summary("weights are missing", missing),
        *_summary("weights have no place in the model", unknown),
        *_summary("weights have the wrong shape", [f"{n} {found[n]} instead of {expected[n]}" for n in wrong]),
    ]


def _summary(what: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    return [f"{len(names)} {what}, such as {names[0]}"] if names else []


def _separate(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, each alone in its memory: safetensors refuses those that share it, as views in a `.bin` may."""
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
    """Name → shape of every parameter of a transformers model, which takes no memory: it is built on `meta`."""
    import torch
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, model_class)(config)
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
