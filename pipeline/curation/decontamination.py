"""The images that must not be in the dataset, because models trained on it will be evaluated on them.

A set is a folder, a tar, an image, or a `.txt` list of images (one path or URL a line, relative to the list); its
members are known by the sha256 of their bytes and by their perceptual hash.
"""

import hashlib
import io
import logging
import tarfile
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.artifacts import digest
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.curation.perceptual_hash import perceptual_hash

logger = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_TAR = (".tar", ".tar.gz", ".tgz")
_MEMBERS = pa.schema([("name", pa.string()), ("sha256", pa.string()), ("phash", pa.uint64())])


class EvaluationSetError(UserError):
    """An evaluation set that cannot be read, or holds no image; the message names it."""


class EvaluationImages:
    """What is known of the evaluation sets' images; `id` changes when they do."""

    def __init__(self, table: pa.Table, id: str) -> None:
        self.id = id
        self.names: list[str] = table["name"].to_pylist()
        self._of_bytes = dict(zip(table["sha256"].to_pylist(), self.names, strict=True))
        hashed = table.filter(table["phash"].is_valid())
        self.hashes = hashed["phash"].to_numpy().astype(np.uint64)
        self.hashed_names: list[str] = hashed["name"].to_pylist()

    def of_bytes(self, sha256: str) -> str | None:
        """The image that has these bytes."""
        return self._of_bytes.get(sha256)


def evaluation_images(run: Run, sets: Sequence[str]) -> EvaluationImages:
    """The images of all sets, hashed once: the result is kept in the run until a set's files change."""
    id = digest(*((path, storage.stamps_below(path)) for path in sets))
    url = run.clean("evaluation", f"{id}.parquet")
    if not storage.exists(url):
        rows = []
        for path in sets:
            found = [_known(name, content) for name, content in _contents(path)]
            if not found:
                raise EvaluationSetError(f"{path}: no image in this evaluation set; images end in {', '.join(IMAGES)}")
            unread = sum(row["phash"] is None for row in found)
            logger.warning(f"evaluation set {path}: {len(found)} images" + (f", {unread} unreadable" if unread else ""))
            rows += found
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=_MEMBERS), buffer, compression="zstd")
        storage.create(url, buffer.getvalue())
    return read_evaluation_hashes(run, id)


def read_evaluation_hashes(run: Run, id: str) -> EvaluationImages:
    url = run.clean("evaluation", f"{id}.parquet")
    return EvaluationImages(artifacts.read_parquet(url, f"Remove {url}; `lotlip-data shard` makes it again."), id)


def _known(name: str, content: bytes) -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "phash": perceptual_hash(content)}


def _contents(path: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image of a set."""
    lower = path.lower()
    try:
        if lower.endswith(_TAR):
            yield from _members(path)
        elif lower.endswith(".txt"):
            for line in storage.read_bytes(path).decode().splitlines():
                if name := line.strip():
                    absolute = "://" in name or name.startswith("/")
                    yield name, storage.read_bytes(name if absolute else storage.join(path.rpartition("/")[0], name))
        elif lower.endswith(IMAGES):
            yield path, storage.read_bytes(path)
        else:
            for name in storage.list_below(path):
                if name.lower().endswith(IMAGES):
                    yield storage.join(path, name), storage.read_bytes(storage.join(path, name))
    except (OSError, tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        raise EvaluationSetError(f"{path}: this evaluation set cannot be read: {error}") from error


def _members(path: str) -> Iterator[tuple[str, bytes]]:
    with storage.open_read(path) as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            if member.name.lower().endswith(IMAGES) and (content := tar.extractfile(member)) is not None:
                yield f"{path}/{member.name}", content.read()
