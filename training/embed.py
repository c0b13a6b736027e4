"""Writes the features that a model computes for images or texts, as Parquet. The file says which model it was."""

import json
import logging
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import compress

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import DECODE_THREADS, batched, map_ordered
from lotlip_data.manifests.progress import progress_bar
from lotlip_data.training.data.image_files import FolderImages, ImageFiles, require_images
from lotlip_data.training.devices import in_16_bit, pick_device
from lotlip_data.training.evaluation.models import Embedder

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
METADATA = b"lotlip_data"
"""Key of the Parquet file's metadata, which has `image_identity` of the model as JSON."""


@dataclass(frozen=True)
class Embedding:
    """The outcome of an embedding."""

    written: int
    """Number of features in the file."""
    width: int
    """D, the numbers of a feature."""
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
        require_images(any(True for _ in FolderImages(images).stamps()), images)
    if texts is not None:
        _read_lines(texts)


def _require_new(out: str) -> None:
    if storage.is_folder(out):
        raise UserError(f"{out}: is a folder; name the Parquet file to write")
    if storage.exists(out):
        raise UserError(f"{out}: exists already; choose another file or remove it")


def embed_images(model: Embedder, folder: str, out: str, device: str | None = None) -> Embedding:
    """Write the features of the images in a folder, in the order of their names.

    Args:
        model: A model of `load_embedder`.
        folder: A local path or fsspec URL. Subfolders are included.
        out: The Parquet file to create: columns `name` and `feature`, float32 [D] with norm 1.
        device: The device that the model was loaded to.

    Returns:
        The number of features, and the images that could not be read and were skipped.

    Raises:
        UserError: The folder has no image, or `out` exists.
    """
    _require_new(out)
    files = FolderImages(folder)
    names = sorted(name for name, _ in files.stamps())
    require_images(bool(names), folder)
    failed: list[str] = []

    def parts() -> Iterator[tuple[list[str], Tensor]]:
        with progress_bar("embed", len(names), "image") as bar:
            for part in image_features(model, files, names, device):
                failed.extend(f"{name}: {reason}" for name, reason in part.unreadable)
                yield part.names, part.features
                bar.note(f"{len(failed):,} failed" if failed else "")
                bar.update(len(part.names) + len(part.unreadable))

    written, width = _write(out, parts(), "name", model, pick_device(device))
    return Embedding(written, width, failed)


@dataclass(frozen=True)
class ImageFeatures:
    """The features of some images, and those among them that could not be read."""

    names: list[str]
    features: Tensor
    """Unit float32 features [N, D] of `names`."""
    unreadable: list[tuple[str, str]]
    """Names and reasons."""


def image_features(
    model: Embedder, files: ImageFiles, names: Iterable[str], device: str | None = None
) -> Iterator[ImageFeatures]:
    """The features of images, batch by batch in the order of `names`.

    Threads decode images ahead, in bounded memory. A GPU computes in 16 bit.

    Args:
        model: A model of `load_embedder`.
        files: The images.
        names: Their names.
        device: The device that the model was loaded to.
    """

    place = pick_device(device)

    def read(name: str) -> tuple[str, Tensor | str]:
        image = files.read(name)
        return name, image if isinstance(image, str) else model.pixels(image)

    for part in batched(map_ordered(read, names, DECODE_THREADS, window=2 * BATCH_SIZE), BATCH_SIZE):
        decoded = {name: pixels for name, pixels in part if isinstance(pixels, Tensor)}
        unreadable = [(name, reason) for name, reason in part if isinstance(reason, str)]
        features = torch.zeros(0, 0)
        if decoded:
            with in_16_bit(place):
                features = model.embed_pixels(torch.stack(list(decoded.values())))
        finite = features.isfinite().all(dim=1).tolist()
        unreadable += [
            (name, "its feature is not finite") for name, good in zip(decoded, finite, strict=True) if not good
        ]
        yield ImageFeatures(list(compress(decoded, finite)), features[finite], unreadable)


def embed_texts(model: Embedder, file: str, out: str, device: str | None = None) -> Embedding:
    """Write the features of the texts in a file, in their order.

    Args:
        model: A model of `load_embedder`.
        file: A UTF-8 file (local path or fsspec URL) with one text per line. A blank line is a text too.
        out: The Parquet file to create: columns `text` and `feature`, float32 [D] with norm 1.
        device: The device that the model was loaded to.

    Raises:
        UserError: The file is empty or not UTF-8, or `out` exists.
    """
    _require_new(out)
    lines = _read_lines(file)
    truncated = 0

    def parts() -> Iterator[tuple[list[str], Tensor]]:
        nonlocal truncated
        for part in batched(lines, 16 * BATCH_SIZE):
            with in_16_bit(pick_device(device)):
                embedded = model.embed_texts(part)
            truncated += sum(length > model.context_length for length in embedded.lengths)
            yield part, embedded.features

    written, width = _write(out, parts(), "text", model, pick_device(device))
    if truncated:
        logger.warning(
            f"{truncated:,} of {wording.count(len(lines), 'text')} {wording.plural(truncated, 'is')} longer than "
            f"{model.context_length} tokens and truncated"
        )
    return Embedding(written, width, [])


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


def _write(
    out: str, parts: Iterable[tuple[list[str], Tensor]], key: str, model: Embedder, place: torch.device
) -> tuple[int, int]:
    """Commit features as one Parquet file. Raises UserError if it exists.

    Args:
        out: The file.
        parts: Strings for the first column, and features [N, D].
        key: The name of the first column.
        model: The model that has computed them.
        place: Its device.

    Returns:
        The number of rows, and D.
    """
    with in_16_bit(place):
        width = model.embed_images([Image.new("RGB", (8, 8))]).shape[1]
    metadata = {METADATA: json.dumps({"image_identity": model.image_identity})}
    schema = pa.schema([(key, pa.string()), ("feature", pa.list_(pa.float32(), width))], metadata=metadata)
    rows = 0
    with tempfile.TemporaryDirectory() as scratch:
        local = pathlib.Path(scratch, "features.parquet")
        with pq.ParquetWriter(local, schema) as writer:
            for strings, features in parts:
                values = pa.FixedSizeListArray.from_arrays(pa.array(features.numpy().ravel(), pa.float32()), width)
                writer.write_table(pa.table([pa.array(strings, pa.string()), values], schema=schema))
                rows += len(strings)
        if not storage.create_from_file(out, str(local)):
            _require_new(out)
    return rows, width
