"""Features of folders of images and files of texts, by a trained model, as Parquet."""

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

BATCH = 64
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Embedding:
    """How many features were written, and what could not be embedded, and why: a line each."""

    written: int
    failed: list[str]


def embed_images(model: LoTLIP, folder: str, out: str) -> Embedding:
    """Features of a folder's images (a path or fsspec URL) in the order of their names: columns `name`, `feature`.

    An image that cannot be read is left out, counted and named. Raises UserError where the folder holds no image.
    """
    names = [name for name in storage.list_below(folder) if name.lower().endswith(ENDINGS)]
    if not names:
        raise UserError(f"{folder}: no image there; their names end in {', '.join(ENDINGS)}")
    reasons: list[str] = []

    def features() -> Iterator[dict[str, Any]]:
        for done, some in enumerate(batched(names, BATCH)):
            images = {name: image for name in some if (image := _read(folder, name, reasons))}
            yield {"name": list(images), "feature": model.embed_images(images.values())}
            if done % 100 == 99:
                logger.info(f"{(done + 1) * BATCH} of {len(names)} images")

    return Embedding(_write(out, features(), model.towers.image.dim, "name"), reasons)


def _read(folder: str, name: str, reasons: list[str]) -> Image.Image | None:
    """The image upright; None where it cannot be read, and why is among the reasons."""
    try:
        with storage.open_read(storage.join(folder, name)) as file:
            return ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reasons.append(f"{name}: {error}")
        return None


def embed_texts(model: LoTLIP, file: str, out: str) -> Embedding:
    """Features of the texts of a file, one a line, in their order: columns `text`, `feature`. Blank lines are texts."""
    with storage.open_read(file) as stream:
        try:
            lines = stream.read().decode().splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 ({error}); convert it") from error
    if not lines:
        raise UserError(f"{file}: holds no text; give one a line")
    encoded = model.tokenizer.encode(lines)
    cut = sum(encoded.cut)
    if cut:
        logger.info(
            f"{cut} of {len(lines)} texts are longer than {model.tokenizer.context_length} tokens, and are cut there"
        )
    parts = ({"text": part, "feature": model.embed_texts(part)} for part in batched(lines, 16 * BATCH))
    return Embedding(_write(out, parts, model.towers.image.dim, "text"), [])


def _write(out: str, parts: Iterable[dict[str, Any]], dim: int, key: str) -> int:
    """Commit the parts as one Parquet file, and return how many rows it has. Raises UserError where it exists."""
    if storage.exists(out):
        raise UserError(f"{out}: exists already; name another file, or remove it")
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
            raise UserError(f"{out}: exists already; name another file, or remove it")
    return rows
