"""Writes the features that a trained model computes for a folder of images or a file of texts, as Parquet."""

import logging
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched
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
    names = [name for name in storage.list_below(folder) if name.lower().endswith(IMAGE_EXTENSIONS)]
    if not names:
        raise UserError(f"{folder}: has no images; supported extensions are {', '.join(IMAGE_EXTENSIONS)}")
    failed: list[str] = []

    def features() -> Iterator[dict[str, Any]]:
        for done, part in enumerate(batched(names, BATCH_SIZE)):
            images = {name: image for name in part if (image := _read_image(folder, name, failed))}
            yield {"name": list(images), "feature": model.embed_images(images.values())}
            if done % 100 == 99:
                logger.info(f"{(done + 1) * BATCH_SIZE} of {len(names)} images")

    return Embedding(_write(out, features(), model.towers.image.dim, "name"), failed)


def _read_image(folder: str, name: str, failed: list[str]) -> Image.Image | None:
    """The image in RGB, upright. If it cannot be read: None, and the reason is appended to `failed`."""
    try:
        with storage.open_read(storage.join(folder, name)) as file:
            return ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        failed.append(f"{name}: {error}")
        return None


def embed_texts(model: LoTLIP, file: str, out: str) -> Embedding:
    """Write the features of the texts in a file, in their order.

    Args:
        model: The model.
        file: A UTF-8 file (local path or fsspec URL) with one text per line. A blank line is a text too.
        out: The Parquet file to create: columns `text` and `feature`, float32 [D] with norm 1.

    Raises:
        UserError: The file is empty or not UTF-8, or `out` exists.
    """
    with storage.open_read(file) as stream:
        try:
            lines = stream.read().decode().splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 ({error}); convert the file to UTF-8") from error
    if not lines:
        raise UserError(f"{file}: has no texts; write one text per line")
    encoded = model.tokenizer.encode(lines)
    if truncated := sum(encoded.truncated):
        logger.warning(
            f"{truncated} of {len(lines)} texts are longer than {model.tokenizer.context_length} tokens and are "
            "truncated"
        )
    parts = ({"text": part, "feature": model.embed_texts(part)} for part in batched(lines, 16 * BATCH_SIZE))
    return Embedding(_write(out, parts, model.towers.image.dim, "text"), [])


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
    exists = f"{out}: exists already; choose another file or remove it"
    if storage.exists(out):
        raise UserError(exists)
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
            raise UserError(exists)
    return rows
