"""Reads the images of evaluation sets, which the dataset must not contain.

Models trained on the dataset are evaluated on these images. An evaluation set is a folder, a tar, an image, or a `.txt`
list of images with one path or URL per line, relative to the list. Its images are recognized by the sha256 of their
bytes and by their perceptual hashes.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from lotlip_data.manifests import artifacts, storage, wording
from lotlip_data.manifests.artifacts import digest
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import tar_reader
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.curation.perceptual_hash import perceptual_hash

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_REMEDY = "Correct `clean.evaluation_sets` in the manifest, or replace the file."
_HASHES = pa.schema([("name", pa.string()), ("sha256", pa.string()), ("phash", pa.uint64())])


class EvaluationSetError(UserError):
    """An evaluation set that cannot be read or has no image; the message names it."""


class EvaluationImages:
    """The images of the evaluation sets."""

    def __init__(self, table: pa.Table, id: str) -> None:
        self.id = id
        """Identifies the images; it changes when a file of a set does."""
        self.names: list[str] = table["name"].to_pylist()
        self._name_by_sha256 = dict(zip(table["sha256"].to_pylist(), self.names, strict=True))
        hashed = table.filter(table["phash"].is_valid())
        self.hashes = hashed["phash"].to_numpy().astype(np.uint64)
        """uint64 [h]: the perceptual hashes of the h images that can be decoded."""
        self.hashed_names: list[str] = hashed["name"].to_pylist()
        """The names of these h images."""

    def find_sha256(self, sha256: str) -> str | None:
        """The name of the image with these bytes, or None."""
        return self._name_by_sha256.get(sha256)


def evaluation_images(run: Run, sets: Sequence[str]) -> EvaluationImages:
    """The images of all sets. Their hashes are kept in the run until a file of a set changes.

    Args:
        run: The run.
        sets: The evaluation sets, as paths or URLs.

    Raises:
        EvaluationSetError: A set cannot be read or has no image.
    """
    id = digest(*((path, storage.stamps_below(path)) for path in sets))
    url = run.evaluation_hashes(id)
    if not storage.exists(url):
        rows = [row for path in sets for row in _hash_set(path)]
        storage.create(url, artifacts.encode_parquet(pa.Table.from_pylist(rows, schema=_HASHES)))
    return read_evaluation_hashes(run, id)


def read_evaluation_hashes(run: Run, id: str) -> EvaluationImages:
    """The images that `evaluation_images` has hashed before, by their id."""
    url = run.evaluation_hashes(id)
    return EvaluationImages(artifacts.read_parquet(url, f"Remove {url}; `lotlip-data shard` makes it again."), id)


def _hash_set(path: str) -> list[dict[str, object]]:
    rows = [_hash_image(name, content) for name, content in _iter_images(path)]
    if not rows:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise EvaluationSetError(f"{path}: the evaluation set has no image; names of images end in {suffixes}")
    unreadable = sum(row["phash"] is None for row in rows)
    message = f"evaluation set {path}: {wording.count(len(rows), 'image')}" + (
        f", {unreadable} unreadable" if unreadable else ""
    )
    logger.log(logging.WARNING if unreadable else logging.INFO, message)
    return rows


def _hash_image(name: str, content: bytes) -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "phash": perceptual_hash(content)}


def _iter_images(path: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each image of a set."""
    try:
        if path.lower().endswith(_TAR_SUFFIXES):
            for name, content in tar_reader.iter_members(path, _REMEDY, IMAGE_SUFFIXES, EvaluationSetError):
                yield f"{path}/{name}", content
            return
        for name, url in _list_images(path):
            yield name, storage.read_bytes(url)
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationSetError(f"{path}: cannot be read ({error}). {_REMEDY}") from error


def _list_images(path: str) -> Iterator[tuple[str, str]]:
    """Name and URL of each image of a set that is not a tar."""
    lower = path.lower()
    if lower.endswith(".txt"):
        folder = path.rpartition("/")[0]
        for line in storage.read_bytes(path).decode().splitlines():
            if name := line.strip():
                is_absolute = "://" in name or name.startswith("/")
                yield name, name if is_absolute else storage.join(folder, name)
    elif lower.endswith(IMAGE_SUFFIXES):
        yield path, path
    else:
        for name in storage.list_below(path):
            if name.lower().endswith(IMAGE_SUFFIXES):
                url = storage.join(path, name)
                yield url, url
