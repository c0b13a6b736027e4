"""Searches a folder of images, a run's dataset or a file of features for the images most similar to a text."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.progress import progress_bar
from lotlip_data.manifests.run_layout import Run
from lotlip_data.training.data.image_files import DatasetImages, FolderImages, ImageFiles, require_images
from lotlip_data.training.embed import METADATA, image_features
from lotlip_data.training.evaluation.models import Embedder
from lotlip_data.training.search.index import PART, ImageIndex

logger = logging.getLogger(__name__)

SHOWN_UNREADABLE = 20
"""Number of unreadable images that a result names."""


@dataclass(frozen=True)
class SearchResult:
    """The images most similar to a text."""

    nearest: list[tuple[str, float]]
    """Names and cosine similarities, best first."""
    searched: int
    """Number of images that were compared."""
    indexed: int
    """Number of them whose features this search has computed."""
    unreadable: int
    unreadable_names: list[tuple[str, str]]
    """Names and reasons of the first SHOWN_UNREADABLE images that cannot be read."""


def search_images(
    model: Embedder,
    images: str,
    text: str,
    *,
    top: int = 10,
    index: str | None = None,
    device: str | None = None,
) -> SearchResult:
    """Find the images most similar to a text.

    Features are computed for images that are new or have changed, and kept. The next search with a model of the same
    image tower, whatever its text tower, computes what is missing.

    Args:
        model: A model of `load_embedder`.
        images: A folder of images (a path or an fsspec URL), a run with a dataset, or a Parquet file of `embed`.
        text: The text.
        top: Number of images to find.
        index: Folder for the features. Default: beside a local folder, `IMAGES.index`.
        device: The device that the model was loaded to.

    Raises:
        UserError: There are no images, the features are those of another model, or the index cannot be used.
    """
    embedded = model.embed_texts([text])
    query = embedded.features[0].numpy().astype(np.float32)
    if embedded.lengths[0] > model.context_length:
        logger.warning(
            f"the text has {embedded.lengths[0]:,} tokens, and the model reads the first {model.context_length:,}"
        )
    if images.endswith(".parquet"):
        return _search_file(model, images, query, top)
    files, where = _open(images)
    with ImageIndex(_index_file(where, index, model)) as features:
        indexed = _update(features, model, files, device)
        unreadable, names = features.unreadable(SHOWN_UNREADABLE)
        require_images(bool(len(features) + unreadable), images)
        return SearchResult(features.nearest(query, top), len(features), indexed, unreadable, names)


def _open(images: str) -> tuple[ImageFiles, str]:
    """The images, and their place without a trailing slash."""
    place = storage.normalise(images)
    if storage.exists(Run(place).dataset):
        return DatasetImages(place), place
    return FolderImages(place), place


def _index_file(place: str, index: str | None, model: Embedder) -> Path:
    """The file for the features of these images by this image tower."""
    if index is None and not storage.is_local(place):
        raise UserError(f"{place}: is not on this machine; name a folder for its features with --index")
    folder = Path(f"{place}.index") if index is None else Path(index).expanduser()
    images = hashlib.sha256(place.encode()).hexdigest()[:16]
    return folder / f"{images}-{model.image_identity}.sqlite"


def _update(features: ImageIndex, model: Embedder, files: ImageFiles, device: str | None) -> int:
    """Compute the features that are missing. Returns their number."""
    missing, computed = features.compare(files.stamps()), 0
    if not missing:
        return 0
    with progress_bar("index", missing, "image") as bar:
        for part in image_features(model, files, features.pending(), device):
            features.add(part.names, part.features.numpy(), part.unreadable)
            computed += len(part.names)
            bar.update(len(part.names) + len(part.unreadable))
    return computed


def _search_file(model: Embedder, file: str, query: np.ndarray, top: int) -> SearchResult:
    """As `search_images`, among the features of a file."""
    best: list[tuple[float, str]] = []
    searched = 0
    for names, features in _read_features(model, file):
        similarities = features @ query
        searched += len(names)
        best = sorted([*best, *zip((-similarities).tolist(), names, strict=True)])[:top]
    return SearchResult([(name, -negative) for negative, name in best], searched, 0, 0, [])


def _read_features(model: Embedder, file: str) -> Iterator[tuple[list[str], np.ndarray]]:
    """The names and features [N, D] of a file that `embed` wrote with this image tower, part by part."""
    try:
        with storage.open_read(file) as stream, pq.ParquetFile(stream) as content:
            _require_features_of(model, content.schema_arrow, file)
            for batch in content.iter_batches(PART, columns=["name", "feature"]):
                values = batch.column(1).flatten().to_numpy(zero_copy_only=False)
                yield batch.column(0).to_pylist(), values.reshape(batch.num_rows, -1)
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: is damaged, or no Parquet file ({error}); write it again with `embed`") from None


def _require_features_of(model: Embedder, schema: Any, file: str) -> None:
    if not {"name", "feature"} <= set(schema.names):
        raise UserError(f"{file}: has no columns name and feature; give a file that `embed --images` wrote")
    recorded = json.loads((schema.metadata or {}).get(METADATA, b"{}")).get("image_identity")
    if recorded != model.image_identity:
        other = "features of another model" if recorded else "features, but does not say of which model"
        raise UserError(f"{file}: has {other}; write it again with `embed` and this model")
