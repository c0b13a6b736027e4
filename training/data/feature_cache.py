"""Features of the locked image tower, computed once for each image and kept beside the dataset.

RUN/features/TOWER/SHARD.npz, where TOWER names the weights and the preprocessing, and SHARD the tar's sha256: so every
training of a run with the same tower shares them, and none takes another's for its own. Written shard by shard.
"""

import dataclasses
import hashlib
import io
import json
import logging
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lotlip_data.manifests import storage
from lotlip_data.manifests.schema import IMAGE_EXTENSION
from lotlip_data.training.data.dataset import DataError, Dataset, Place, Shard, kept
from lotlip_data.training.data.image_transforms import ImageTransform
from lotlip_data.training.distributed import ALONE, ProcessGroup
from lotlip_data.training.models.towers import ImageTower

logger = logging.getLogger(__name__)

BATCH = 64
WAIT_SECONDS = 1.0


def tower_id(tower: ImageTower, transform: ImageTransform) -> str:
    """16 hexadecimal digits that stand for the weights and the preprocessing."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(transform)).encode())
    for name, value in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureCache:
    """The locked tower's features of a dataset, float16 on the storage, not normalised."""

    def __init__(self, dataset: Dataset, tower: ImageTower, transform: ImageTransform, open_shards: int = 3) -> None:
        self._dataset = dataset
        self._tower = tower
        self._transform = transform
        self.shard = kept(self._read, open_shards)
        """float16 [samples, D] of a shard by its index, in its order. Raises DataError where the file is damaged."""
        self.folder = storage.join(dataset.url, "features", tower_id(tower, transform))

    @property
    def shards(self) -> int:
        """How many the dataset has."""
        return len(self._dataset.shards)

    def missing(self) -> list[int]:
        """The shards, by index, that have no features yet."""
        there = set(storage.list_names(self.folder))
        return [index for index, shard in enumerate(self._dataset.shards) if self._name(shard) not in there]

    def fill(self, of: ProcessGroup = ALONE) -> None:
        """Compute the features of every shard that has none yet; several processes share the work."""
        missing = self.missing()
        if missing:
            logger.log(
                logging.INFO if of.is_first else logging.DEBUG,
                f"image features: {len(missing)} of {len(self._dataset.shards)} shards to compute, in {self.folder}",
            )
        for index in missing[of.rank :: of.size]:
            self.compute(index)
        while of.size > 1 and self.missing():  # not a barrier of torch.distributed: those give up after a while
            time.sleep(WAIT_SECONDS)

    def compute(self, index: int) -> None:
        """Compute and commit the features of one shard."""
        shard = self._dataset.shards[index]
        storage.create(storage.join(self.folder, self._name(shard)), self._compute(shard))

    def _read(self, index: int) -> np.ndarray:
        shard = self._dataset.shards[index]
        where = storage.join(self.folder, self._name(shard))
        try:
            with np.load(io.BytesIO(storage.read_bytes(where))) as content:
                features: np.ndarray = content["features"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{where}: cannot be read ({error}). Remove it: it will be computed again.") from error
        if features.shape != (shard.samples, self._tower.dim):
            raise DataError(f"{where}: of shape {features.shape}, not {(shard.samples, self._tower.dim)}. Remove it.")
        return features

    def rows(self, places: Sequence[Place]) -> Tensor:
        """float32 [N, D] of these (epoch, shard, row)."""
        return torch.from_numpy(np.stack([self.shard(shard)[row] for _, shard, row in places]).astype(np.float32))

    def _name(self, shard: Shard) -> str:
        return f"{shard.sha256[:32]}.npz"

    @torch.no_grad()
    def _compute(self, shard: Shard) -> bytes:
        device = next(self._tower.parameters()).device
        images, features = [], []
        for image in _images(shard):
            images.append(image)
            if len(images) == BATCH:
                features.append(self._tower(self._transform(images).to(device)).cpu())
                images = []
        if images:
            features.append(self._tower(self._transform(images).to(device)).cpu())
        table = torch.cat(features).to(torch.float16).numpy() if features else np.zeros((0, self._tower.dim))
        if len(table) != shard.samples:
            raise DataError(f"{shard.tar}: {len(table)} images, dataset.json says {shard.samples}")
        buffer = io.BytesIO()
        np.savez(buffer, features=table)
        return buffer.getvalue()


def _images(shard: Shard) -> Iterator[Image.Image]:
    """The images of a tar in its order, which is the Parquet twin's. Raises DataError where one cannot be decoded."""
    try:
        with storage.open_read(shard.tar) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if not member.name.endswith(f".{IMAGE_EXTENSION}"):
                    continue
                source = tar.extractfile(member)
                if source is None:
                    raise DataError(f"{shard.tar}: {member.name} is no file")
                try:
                    yield Image.open(io.BytesIO(source.read())).convert("RGB")
                except (OSError, ValueError) as error:
                    raise DataError(f"{shard.tar}: {member.name} is no image that can be read ({error})") from error
    except tarfile.TarError as error:
        raise DataError(f"{shard.tar}: cannot be read ({error}). Run `lotlip-data verify` on the run.") from error
