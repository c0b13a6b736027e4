"""A folder with both towers as ONNX, the tokenizer, and what an input looks like (config.json).

lotlip_onnx.py in the folder shows how to use them, in a few lines and without torch: onnxruntime, tokenizers, Pillow
and numpy.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.data.tokenizer import TextTokenizer
from lotlip_data.training.export.base import Format
from lotlip_data.training.export.corners import without_corner_tokens
from lotlip_data.training.export.source_files import write_sources
from lotlip_data.training.export.text_files import (
    TOKENIZER,
    describe_tokenizer,
    form_of,
    reads_special_tokens_as_text,
    write_tokenizer,
)
from lotlip_data.training.models.lotlip import LoTLIP

OPSET = 18
_MODULE = "lotlip_data.training.export.standalone.lotlip_onnx"
_IMAGE, _TEXT = "image.onnx", "text.onnx"


class OnnxFolder(Format):
    """Both towers as ONNX graphs that give unit features."""

    mark = "config.json"
    tolerance = 1e-4

    def prepare(self, model: LoTLIP) -> LoTLIP:
        require_packages()
        return without_corner_tokens(model) or model

    def write(self, model: LoTLIP, folder: Path) -> None:
        pixels = torch.zeros(2, 3, model.transform.size, model.transform.size)
        _export(_ImageGraph(model), pixels, folder / _IMAGE, "pixel_values", {0: "images"})
        ids = model.tokenizer.pad(model.tokenizer.encode(["two red cars. a dog on a beach.", "a"]).ids)
        _export(_TextGraph(model), ids, folder / _TEXT, "input_ids", {0: "texts", 1: "tokens"})
        content = {**describe_tokenizer(model.tokenizer), **_truncation_and_padding(model.tokenizer)}
        write_tokenizer(folder, content, model.tokenizer)
        write_sources([_MODULE], folder, is_package=False)

    def describe(self, model: LoTLIP, home: str) -> dict[str, Any]:
        tokenizer, size, width = model.tokenizer, model.transform.size, model.towers.image.dim
        output = {"name": "features", "type": "float32", "shape": ["N", width]}
        image = {
            "file": _IMAGE,
            "input": {"name": "pixel_values", "type": "float32", "shape": ["N", 3, size, size]},
            "output": output,
            "transform": model.transform.settings(),
        }
        text = {
            "file": _TEXT,
            "input": {"name": "input_ids", "type": "int64", "shape": ["N", "L"]},
            "output": output,
            "tokenizer": TOKENIZER,
            "form": form_of(tokenizer),
            "separator": str(tokenizer.tokenizer.sep_token),
            "special_tokens_are_text": reads_special_tokens_as_text(tokenizer),
            "context_length": tokenizer.context_length,
            "pad_id": tokenizer.pad_id,
        }
        return {"scale": model.towers.scale.item(), "image": image, "text": text}

    def load(self, folder: Path) -> "_Reader":
        return _Reader(folder)


def require_packages() -> None:
    """Raise UserError if a package of the extra `onnx` is not installed."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--format onnx needs the Python package {missing[0]}, which is not installed; "
            "pip install 'lotlip-data[onnx]'; in a clone: pip install '.[onnx]'"
        )


def _truncation_and_padding(tokenizer: TextTokenizer) -> dict[str, Any]:
    """The parts of tokenizer.json that truncate texts at the context length and pad them."""
    length, side = tokenizer.context_length, tokenizer.tokenizer.padding_side if tokenizer.is_padded else "right"
    truncation = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": length} if tokenizer.is_padded else "BatchLongest",
        "direction": side.capitalize(),
        "pad_to_multiple_of": None,
        "pad_id": tokenizer.pad_id,
        "pad_type_id": 0,
        "pad_token": str(tokenizer.tokenizer.pad_token),
    }
    return {"truncation": truncation, "padding": padding}


class _ImageGraph(nn.Module):
    def __init__(self, model: LoTLIP) -> None:
        super().__init__()
        self.tower = model.towers.image

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.normalize(self.tower(pixel_values), dim=-1)


class _TextGraph(nn.Module):
    def __init__(self, model: LoTLIP) -> None:
        super().__init__()
        self.tower = model.towers.text

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.normalize(self.tower(input_ids)[:, 0], dim=-1)


def _export(graph: nn.Module, example: Tensor, file: Path, name: str, dynamic: dict[int, str]) -> None:
    """Write a graph with one input and one output, whose axes `dynamic` may have any size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own use of its deprecated functions
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            input_names=[name],
            output_names=["features"],
            dynamic_shapes=({axis: torch.export.Dim(label) for axis, label in dynamic.items()},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(file)


class _Reader:
    """The folder, read by the module that lies in it as a copy."""

    def __init__(self, folder: Path) -> None:
        from lotlip_data.training.export.standalone.lotlip_onnx import LoTLIP as OnnxLoTLIP

        self._model = OnnxLoTLIP(str(folder))

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.from_numpy(self._model.embed_images(images))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(self._model.embed_texts(texts))
