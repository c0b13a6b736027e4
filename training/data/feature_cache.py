"""Caches the features of the locked image tower beside the dataset, so that each image is computed once.

A shard's features are RUN/features/TOWER/SHARD.npz. TOWER identifies the weights and the preprocessing, SHARD is the
tar's sha256. All trainings of a run with the same tower share the files, and no training reads those of another tower.

Shapes: N images, D width of a feature.
"""

import functools
import hashlib
import io
import json
import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lotlip_data.manifests import artifacts, storage, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import tar_reader
from lotlip_data.manifests.formats.dataset_index import ShardFile
from lotlip_data.manifests.formats.feature_file import encode_features, file_name, read_features
from lotlip_data.manifests.formats.schema import IMAGE_EXTENSION
from lotlip_data.manifests.iteration import batched, map_ordered
from lotlip_data.manifests.progress import progress_bar
from lotlip_data.manifests.run_layout import Run
from lotlip_data.training.data.dataset import VERIFY_REMEDY, DataError, Dataset, SampleRef, shard_cache
from lotlip_data.training.data.image_features import features_of, files_by_shard
from lotlip_data.training.data.image_transforms import ImageTransform
from lotlip_data.training.devices import in_16_bit
from lotlip_data.training.distributed import SINGLE_PROCESS, ProcessGroup, cores_per_process
from lotlip_data.training.models.towers import ImageTower

logger = logging.getLogger(__name__)

BATCH_IMAGES = 64
MAX_THREADS = 8
"""Threads that decode images for one GPU, at most: more only wait for the interpreter."""
POLL_SECONDS = 1.0


def tower_id(tower: ImageTower, transform: ImageTransform) -> str:
    """16 hexadecimal digits that identify the weights, the preprocessing and the pooling.

    A class token is not named, so that stored features stay valid, but a masked autoencoder's is: earlier releases
    stored its features with patches masked at random.
    """
    digest = hashlib.sha256(json.dumps(transform.settings()).encode())
    if tower.pooling != "class_token" or tower.vit.config.model_type == "vit_mae":
        digest.update(tower.pooling.encode())
    for name, value in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureCache:
    """The locked tower's features of a dataset: float16 in storage, not normalized."""

    def __init__(
        self,
        dataset: Dataset,
        tower: ImageTower,
        transform: ImageTransform,
        open_shards: int = 3,
        threads: int | None = None,
    ) -> None:
        """
        Args:
            dataset: The samples.
            tower: The locked tower, on the device that it computes on.
            transform: Size, normalization and interpolation of its images.
            open_shards: Number of shards whose features stay in memory.
            threads: Number of threads that decode images. Default: this process's cores, MAX_THREADS at most, for a
                GPU; one where the tower uses the cores.
        """
        self._dataset = dataset
        self._tower = tower
        self._transform = transform
        self._threads = threads
        self.shard = shard_cache(self._read, open_shards)
        """float16 [samples, D] of a shard by its index, in the order of its rows. Raises DataError for a bad file."""
        self._tower_id = tower_id(tower, transform)
        self.folder = Run(dataset.url).features(self._tower_id)

    @property
    def shards(self) -> int:
        """Number of shards in the dataset."""
        return len(self._dataset.shards)

    def load(self, samples: Sequence[SampleRef]) -> Tensor:
        """float32 [N, D] of N samples."""
        return torch.from_numpy(np.stack([self.shard(shard)[row] for _, shard, row in samples]).astype(np.float32))

    def missing(self) -> list[int]:
        """The indices of the shards that have no features yet."""
        names = set(storage.list_names(self.folder))
        return [index for index, shard in enumerate(self._dataset.shards) if file_name(shard.sha256) not in names]

    def fill(self, group: ProcessGroup = SINGLE_PROCESS) -> None:
        """Compute the features of all missing shards. Several processes divide the shards among themselves."""
        missing = self.missing()
        if missing:
            shards = wording.count(self.shards, "shard")
            logger.log(
                logging.INFO if group.is_first else logging.DEBUG,
                f"image features: {len(missing):,} of {shards} to compute, in {self.folder}",
            )
        own = missing[group.rank :: group.size]
        with progress_bar("features", len(own), "shard", visible=group.is_first and bool(own)) as bar:
            for index in own:
                self.compute(index)
                bar.update()
        while group.size > 1 and self.missing():  # not a barrier of torch.distributed: a barrier times out
            time.sleep(POLL_SECONDS)

    def compute(self, index: int) -> None:
        """Compute and commit the features of one shard."""
        shard = self._dataset.shards[index]
        stored = self._stored(shard)
        storage.create(self._url(shard), self._compute(shard) if stored is None else encode_features(stored))

    def _stored(self, shard: ShardFile) -> np.ndarray | None:
        """The features that the score stage has stored of the shard's images, float16 [N, D]; None if it has not."""
        files = self._stored_files.get(-1 if shard.input_shard is None else shard.input_shard)
        if not files:
            return None
        table = artifacts.read_parquet(
            shard.parquet_url, VERIFY_REMEDY, ["sha256"], DataError, recorded=shard.parquet.digest
        )
        return features_of(Run(self._dataset.url), self._tower_id, files, table["sha256"].to_pylist())

    @functools.cached_property
    def _stored_files(self) -> dict[int, list[str]]:
        return files_by_shard(Run(self._dataset.url), self._tower_id)

    def _url(self, shard: ShardFile) -> str:
        return storage.join(self.folder, file_name(shard.sha256))

    @torch.no_grad()
    def _compute(self, shard: ShardFile) -> bytes:
        device = next(self._tower.parameters()).device
        threads = self._threads or (min(MAX_THREADS, cores_per_process()) if device.type == "cuda" else 1)
        pixels = map_ordered(  # the next batch is decoded while the tower computes
            functools.partial(self._pixels, shard), _read_images(shard), threads, window=max(2 * BATCH_IMAGES, threads)
        )
        features = [self._features(torch.stack(part).to(device)) for part in batched(pixels, BATCH_IMAGES)]
        table = self._to_float16(torch.cat(features)) if features else np.zeros((0, self._tower.dim))
        if len(table) != shard.samples:
            raise DataError(
                f"{shard.tar_url}: has {len(table)} images, but dataset.json lists {shard.samples}. {VERIFY_REMEDY}"
            )
        return encode_features(table)

    def _pixels(self, shard: ShardFile, member: tuple[str, bytes]) -> Tensor:
        """float32 [3, size, size] of a tar's member. Raises DataError if it cannot be decoded."""
        name, content = member
        try:
            image = Image.open(io.BytesIO(content)).convert("RGB")
        except (OSError, ValueError) as error:
            raise DataError(f"{shard.tar_url}: {name} cannot be decoded ({error}). {VERIFY_REMEDY}") from error
        return self._transform.normalize(self._transform.square(image))

    def _features(self, pixels_NCHW: Tensor) -> Tensor:
        """float32 [N, D] on the CPU. A GPU computes in 16 bit, and in 32 what exceeds the range of 16."""
        with in_16_bit(pixels_NCHW.device):
            features_ND = self._tower(pixels_NCHW).float()
        if not features_ND.isfinite().all():
            features_ND = self._tower(pixels_NCHW).float()
        return features_ND.cpu()

    def _to_float16(self, features_ND: Tensor) -> np.ndarray:
        """The features as they are stored. Raises UserError if float16 cannot hold one of them."""
        source = getattr(self._tower.vit.config, "name_or_path", "") or type(self._tower.vit).__name__
        if not features_ND.isfinite().all():
            raise UserError(
                f"image tower {source!r}: its features are not finite (inf or nan); its weights are damaged"
            )
        largest = float(features_ND.abs().max())
        if largest > torch.finfo(torch.float16).max:
            raise UserError(
                f"image tower {source!r}: a feature is {largest:,.0f}, and stored features are float16, at most "
                f"{torch.finfo(torch.float16).max:,.0f}. Set `images: pixels` in the training, which stores no features"
            )
        return features_ND.to(torch.float16).numpy()

    def _read(self, index: int) -> np.ndarray:
        shard = self._dataset.shards[index]
        return read_features(self._url(shard), (shard.samples, self._tower.dim), DataError)


def _read_images(shard: ShardFile) -> Iterator[tuple[str, bytes]]:
    """Name and content of a tar's images in its order, which is the order of the Parquet rows."""
    yield from tar_reader.iter_members(shard.tar_url, VERIFY_REMEDY, f".{IMAGE_EXTENSION}", DataError, shard.tar.digest)
