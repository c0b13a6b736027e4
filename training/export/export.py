"""Exports a trained model: writes a folder, loads it with the library that it is for, and compares the features.

Files of the target, in the order in which they appear:

    conversion.json    the model and the format
    files.part/        the folder while it is written and checked
    everything else    moved to its place after the check; the file without which nothing loads the folder is the last
"""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.checkpoints import conversion
from lotlip_data.manifests.checkpoints.conversion import RECORD
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation.models import LoTLIPModel, load_embedder
from lotlip_data.training.export.base import Format, Reader
from lotlip_data.training.export.onnx_folder import OnnxFolder
from lotlip_data.training.export.open_clip_folder import OpenClipFolder
from lotlip_data.training.export.transformers_folder import TransformersFolder
from lotlip_data.training.models.lotlip import LoTLIP

logger = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {
    "open_clip": OpenClipFolder(),
    "transformers": TransformersFolder(),
    "onnx": OnnxFolder(),
}
_SCRATCH = "files.part"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_TEXTS = (
    "two red cars",
    "A dog lies on a beach. Its ball is 3.5 m away, near Dr. Smith. The sky is blue.",
    "",
    "\u00c9l\u00e8ves [SEP] and [sep] &amp;amp; a caf\u00e9. \u4e2d\u6587\u3002 Two, three.",
    "A red square. A blue circle is left of it. " * 60,
)
"""Texts whose features are compared: with special tokens, entities, several scripts, and more tokens than fit."""


def export_model(source: str, target: str, form: str, hub_id: str | None = None) -> bool:
    """Export a model.

    Args:
        source: A model folder of this project.
        target: A new folder.
        form: `open_clip`, `transformers` or `onnx`.
        hub_id: For `open_clip`: the hub id under which the folder will be published.

    Returns:
        False if the model had been exported before.

    Raises:
        UserError: The model is damaged or none of this project, the format cannot hold it, the target cannot be
            written, or the written folder gives other features.
    """
    if form not in FORMATS:
        raise UserError(f"--format {form}: is not one of {', '.join(FORMATS)}")
    if hub_id and form != "open_clip":
        raise UserError(f"--hub-id: is for --format open_clip; a folder of {form} works wherever it lies")
    if hub_id and not _HUB_ID.fullmatch(hub_id):
        raise UserError(f"--hub-id {hub_id}: is no id of a repository; give ORG/NAME, such as my-org/lotlip-b16")
    sources = {"the model": Path(source).expanduser()}
    conversion.check_target(target, sources)  # before the model is loaded, which takes seconds
    embedder = load_embedder(source, "cpu")
    if not isinstance(embedder, LoTLIPModel):
        raise UserError(f"{source}: is not a model folder of this project; give the `model` folder of a training")
    out = conversion.make_target(target, sources)
    record = {"source": source, "identity": embedder.identity, "format": form, "hub_id": hub_id}
    with conversion.exclusive_lock(out), conversion.explain_full_disk(out):
        return _export(embedder, FORMATS[form], out, record)


def _export(embedder: LoTLIPModel, writer: Format, out: Path, record: dict[str, Any]) -> bool:
    if (out / RECORD).exists() and _identity(_read_record(out)) != _identity(record):
        raise UserError(f"{out}: has an export of another model or format; delete it, or choose another folder")
    if (out / writer.mark).exists():
        logger.info(f"{out}: already exported; nothing to do")
        return False
    model = writer.prepare(embedder.model)
    conversion.write_text(out / RECORD, artifacts.encode_json(record, indent=2).decode())
    scratch = out / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    writer.write(model, scratch)
    _write_mark(writer, model, scratch, str(scratch.resolve()))
    differences = _compare(embedder, writer.load(scratch))
    shown = f"features differ by at most {max(differences.values()):.1e}"
    if not max(differences.values()) <= writer.tolerance:  # also where a difference is NaN
        raise UserError(
            f"{out}: the exported folder gives other features (images {differences['images']:.1e}, texts "
            f"{differences['texts']:.1e}; at most {writer.tolerance:g} is allowed), so it was not finished; its files "
            f"are in {scratch}"
        )
    for file in sorted(scratch.iterdir()):
        if file.name != writer.mark:
            file.replace(out / file.name)
    _write_mark(writer, model, out, record["hub_id"] or str(out.resolve()))
    shutil.rmtree(scratch)
    left_out = embedder.model.tokenizer.corner_tokens - model.tokenizer.corner_tokens
    without = f"; {left_out} corner tokens, which serve the training alone, are left out" if left_out else ""
    if str(out.resolve()) in (out / writer.mark).read_text(encoding="utf-8"):
        logger.info(f"{out / writer.mark}: names the folder's path; after moving the folder, change it there")
    logger.info(f"{out}: done; read back, its {shown}{without}")
    return True


def _write_mark(writer: Format, model: LoTLIP, folder: Path, home: str) -> None:
    content = writer.describe(model, home)
    conversion.write_text(folder / writer.mark, json.dumps(content, indent=2) + "\n")


def _compare(embedder: LoTLIPModel, reader: Reader) -> dict[str, float]:
    """The largest difference of a unit feature, of images and of texts. NaN if a feature is none."""
    images, texts = _images(embedder.model.transform.size), list(_TEXTS)
    return {
        "images": _largest(reader.embed_images(images) - embedder.embed_images(images)),
        "texts": _largest(reader.embed_texts(texts) - embedder.embed_texts(texts).features),
    }


def _largest(difference: Tensor) -> float:
    return float(difference.abs().amax())


def _images(size: int) -> list[Image.Image]:
    """Images whose features are compared: of the model's size, and of odd sizes and other modes, which are resized."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((size, size), (size + 31, 2 * size + 1), (size // 2 + 1, size // 3 + 1))
    noise = (torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator).numpy() for shape in shapes)
    images = [Image.fromarray(each) for each in noise]
    return [*images, images[1].convert("L"), Image.linear_gradient("L").convert("RGBA")]


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in ("identity", "format", "hub_id"))


def _read_record(folder: Path) -> dict[str, Any]:
    remedy = "Remove the folder and export again."
    return artifacts.read_json(str(folder / RECORD), remedy, artifacts.JsonObject)
