"""Reads images from the dataset's tars at random access, each with a random crop.

For image towers that learn, and for locked towers that see each image with a new crop.
"""

import io
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lotlip_data.manifests.formats.dataset_index import ShardFile
from lotlip_data.manifests.formats.schema import IMAGE_EXTENSION
from lotlip_data.manifests.formats.tar_reader import TarIndex, open_seekable
from lotlip_data.training.data.dataset import VERIFY_REMEDY, DataError, Dataset, SampleRef, shard_cache
from lotlip_data.training.data.image_transforms import ImageTransform, random_crop

_CROP_STREAM = 3
"""Second number of each seed, as in dataset.py."""


class PixelReader:
    """The pixels of samples, from a random crop that depends on the seed and the sample alone.

    Args:
        dataset: The samples.
        transform: Size, normalization and interpolation of the images.
        seed: Seed of the crops.
        crop: Smallest and largest area of a crop, as a share of the image.
        open_shards: Number of tars that stay open.
        threads: Number of threads that decode images.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: ImageTransform,
        *,
        seed: int,
        crop: tuple[float, float],
        open_shards: int,
        threads: int,
    ) -> None:
        self._dataset, self._transform, self._seed, self._crop = dataset, transform, seed, crop
        self._tar = shard_cache(self._open_tar, open_shards)
        self._pool = ThreadPoolExecutor(threads, "decoder")

    def load(self, samples: Sequence[SampleRef]) -> Tensor:
        """float32 [N, 3, size, size] of N samples. Raises DataError if an image cannot be decoded."""
        encoded = [self._tar(shard).read(row) for _, shard, row in samples]
        return torch.stack(list(self._pool.map(self._decode, samples, encoded)))

    def _open_tar(self, index: int) -> "ImageTar":
        return ImageTar(self._dataset.shards[index])

    def _decode(self, sample: SampleRef, encoded: bytes) -> Tensor:
        epoch, shard, row = sample
        rng = np.random.default_rng([self._seed, _CROP_STREAM, epoch, shard, row])
        try:
            image = Image.open(io.BytesIO(encoded)).convert("RGB")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self._dataset.shards[shard].tar_url}: image {row} cannot be decoded ({error}). {VERIFY_REMEDY}"
            ) from error
        return self._transform.normalize(random_crop(image, self._transform, self._crop, rng))


class ImageTar:
    """The images of a shard's tar, mapped into memory. A remote tar is copied to a temporary file first."""

    def __init__(self, shard: ShardFile) -> None:
        url, suffix = shard.tar_url, f".{IMAGE_EXTENSION}"
        try:
            with open_seekable(url, remedy=VERIFY_REMEDY, error_type=DataError, recorded=shard.tar.digest) as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # outlives the file
                self._index = TarIndex(file, url, VERIFY_REMEDY, suffix, DataError)
                images = len(self._index)
        except (OSError, ValueError) as error:
            raise DataError(f"{url}: cannot be read ({error}). {VERIFY_REMEDY}") from error
        if images != shard.samples:
            raise DataError(f"{url}: has {images} images, but dataset.json lists {shard.samples}. {VERIFY_REMEDY}")

    def read(self, row: int) -> bytes:
        """The encoded image of a row."""
        offset, size = self._index.span(row)
        return self._content[offset : offset + size]
