"""Reads images from the dataset's tars at random access, each with a random crop.

For image towers that learn, and for locked towers that see each image with a new crop.
"""

import io
import mmap
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lotlip_data.manifests import storage
from lotlip_data.manifests.schema import IMAGE_EXTENSION
from lotlip_data.training.data.dataset import DataError, Dataset, SampleRef, Shard, shard_cache
from lotlip_data.training.data.image_transforms import ImageTransform, random_crop

COPY_BYTES = 1 << 22
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
                f"{self._dataset.shards[shard].tar}: image {row} cannot be decoded ({error}). "
                "Run `lotlip-data verify` on the run."
            ) from error
        return self._transform.normalize(random_crop(image, self._transform, self._crop, rng))


class ImageTar:
    """The tar of a shard, mapped into memory. A remote tar is copied to a temporary file first."""

    def __init__(self, shard: Shard) -> None:
        try:
            with _open_local(shard.tar) as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    self._spans = [
                        (member.offset_data, member.size)
                        for member in tar
                        if member.name.endswith(f".{IMAGE_EXTENSION}")
                    ]
        except (OSError, ValueError, tarfile.TarError) as error:
            raise DataError(f"{shard.tar}: cannot be read ({error}). Run `lotlip-data verify` on the run.") from error
        if len(self._spans) != shard.samples:
            raise DataError(
                f"{shard.tar}: has {len(self._spans)} images, but dataset.json lists {shard.samples}. "
                "Run `lotlip-data verify` on the run."
            )

    def read(self, row: int) -> bytes:
        """The encoded image of a row."""
        start, size = self._spans[row]
        return self._content[start : start + size]


def _open_local(url: str) -> IO[bytes]:
    """The file itself if it is local, else an unnamed temporary copy. Its memory map keeps the copy alive."""
    if storage.is_local(url):
        return Path(storage.normalise(url)).open("rb")
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it; the memory map keeps the content
    with storage.open_read(url) as source:
        while chunk := source.read(COPY_BYTES):
            copy.write(chunk)
    copy.seek(0)
    return cast(IO[bytes], copy)
