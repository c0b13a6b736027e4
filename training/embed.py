"""Writes the features that a trained model computes for a folder of images or a file of texts, as Parquet."""

import logging
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import DECODE_THREADS, batched, map_ordered
from lotlip_data.manifests.progress import progress_bar
from lotlip_data.training.devices import in_16_bit
from lotlip_data.training.models.lotlip import LoTLIP

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Embedding:
    """The outcome of an embedding."""

    written: int
    """Number of features in the file."""
    failed: list[str]
    """One line per image that could not be read, with the reason."""


def check_input(out: str, images: str | None = None, texts: str | None = None) -> None:
    """Check what an embedding reads and writes, which takes a moment, before its model is loaded, which takes longer.

    Args:
        out: The file to write.
        images: The folder of images, or None.
        texts: The file of texts, or None.

    Raises:
        UserError: As `embed_images` and `embed_texts` do.
    """
    _require_new(out)
    if images is not None:
        _image_names(images)
    if texts is not None:
        _read_lines(texts)


def _require_new(out: str) -> None:
    if storage.is_folder(out):
        raise UserError(f"{out}: is a folder; name the Parquet file to write")
    if storage.exists(out):
        raise UserError(f"{out}: exists already; choose another file or remove it")


def embed_images(model: LoTLIP, folder: str, out: str) -> Embedding:
    """Write the features of the images in a folder, in the order of their names.

    Args:
        model: The model.
        folder: A local path or fsspec URL. Subfolders are included.
        out: The Parquet file to create: columns `name` and `feature`, float32 [D] with norm 1.

    Returns:
        The number of features, and the images that could not be read and were skipped.

    Raises:
        UserError: The folder has no image, or `out` exists.
    """
    _require_new(out)
    names = _image_names(folder)
    failed: list[str] = []

    def read(name: str) -> Tensor | str:
        image = _read_image(folder, name)
        return image if isinstance(image, str) else model.transform([image])

    def features() -> Iterator[dict[str, Any]]:
        pixels = map_ordered(read, names, DECODE_THREADS, window=2 * BATCH_SIZE)
        with progress_bar("embed", len(names), "image") as bar:
            for part in batched(zip(names, pixels, strict=True), BATCH_SIZE):
                failed.extend(f"{name}: {reason}" for name, reason in part if isinstance(reason, str))
                decoded = {name: image for name, image in part if not isinstance(image, str)}
                yield {"name": list(decoded), "feature": _embed(model, list(decoded.values()))}
                bar.note(f"{len(failed):,} failed" if failed else "")
                bar.update(len(part))

    return Embedding(_write(out, features(), model.towers.image.dim, "name"), failed)


def _embed(model: LoTLIP, pixels: list[Tensor]) -> Tensor:
    """Unit float32 features [N, D] of N images, each (1, 3, size, size). A GPU computes in 16 bit."""
    if not pixels:
        return torch.zeros(0, model.towers.image.dim)
    with in_16_bit(model.device):
        return model.embed_pixels(torch.cat(pixels))


def _image_names(folder: str) -> list[str]:
    names = [name for name in storage.list_below(folder) if name.lower().endswith(IMAGE_EXTENSIONS)]
    if not names:
        raise UserError(f"{folder}: has no images; supported extensions are {', '.join(IMAGE_EXTENSIONS)}")
    return names


def _read_image(folder: str, name: str) -> Image.Image | str:
    """The image in RGB, upright, or the reason for which it cannot be read."""
    try:
        with storage.open_read(storage.join(folder, name)) as file:
            return ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    except UnidentifiedImageError:
        return "is not an image, or its format is not supported"
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return str(error)


def embed_texts(model: LoTLIP, file: str, out: str) -> Embedding:
    """Write the features of the texts in a file, in their order.

    Args:
        model: The model.
        file: A UTF-8 file (local path or fsspec URL) with one text per line. A blank line is a text too.
        out: The Parquet file to create: columns `text` and `feature`, float32 [D] with norm 1.

    Raises:
        UserError: The file is empty or not UTF-8, or `out` exists.
    """
    _require_new(out)
    lines = _read_lines(file)
    encoded = model.tokenizer.encode(lines)
    if truncated := sum(encoded.truncated):
        logger.warning(
            f"{truncated:,} of {wording.count(len(lines), 'text')} {wording.plural(truncated, 'is')} longer than "
            f"{model.tokenizer.context_length} tokens and truncated"
        )

    def parts() -> Iterator[dict[str, Any]]:
        for part in batched(lines, 16 * BATCH_SIZE):
            with in_16_bit(model.device):
                feature = model.embed_texts(part)
            yield {"text": part, "feature": feature}

    return Embedding(_write(out, parts(), model.towers.image.dim, "text"), [])


def _read_lines(file: str) -> list[str]:
    try:
        lines = storage.read_bytes(file).decode().splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error}); convert the file to UTF-8") from error
    if not lines:
        raise UserError(f"{file}: has no texts; write one text per line")
    return lines


def _write(out: str, parts: Iterable[dict[str, Any]], dim: int, key: str) -> int:
    """Commit features as one Parquet file. Raises UserError if it exists.

    Args:
        out: The file.
        parts: Mappings with a list of strings under `key`, and a tensor [N, D] under "feature".
        dim: D.
        key: The name of the first column.

    Returns:
        The number of rows.
    """
    schema = pa.schema([(key, pa.string()), ("feature", pa.list_(pa.float32(), dim))])
    rows = 0
    with tempfile.TemporaryDirectory() as scratch:
        local = pathlib.Path(scratch, "features.parquet")
        with pq.ParquetWriter(local, schema) as writer:
            for part in parts:
                values = pa.array(part["feature"].numpy().ravel())
                feature = pa.FixedSizeListArray.from_arrays(values, dim)
                writer.write_table(pa.table([pa.array(part[key], pa.string()), feature], schema=schema))
                rows += len(part[key])
        if not storage.create_from_file(out, str(local)):
            _require_new(out)
    return rows
