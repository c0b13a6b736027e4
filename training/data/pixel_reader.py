"""Images of the dataset's tars at random access, cropped at random: for towers that learn, or see each image anew."""

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
from lotlip_data.training.data.dataset import DataError, Dataset, Place, Shard, kept
from lotlip_data.training.data.image_transforms import ImageTransform, random_crop

COPY = 1 << 22  # bytes of a tar that are copied at once


class PixelReader:
    """Pixels of samples, each from a random crop of its image that follows from seed and place alone."""

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
        self._tar = kept(self._open, open_shards)
        self._pool = ThreadPoolExecutor(threads, "decoder")

    def rows(self, places: Sequence[Place]) -> Tensor:
        """float32 [N, 3, size, size] of these (epoch, shard, row). Raises DataError where one cannot be decoded."""
        members = [self._tar(shard).member(row) for _, shard, row in places]
        return torch.stack(list(self._pool.map(self._one, places, members)))

    def _open(self, index: int) -> "Tar":
        return Tar(self._dataset.shards[index])

    def _one(self, place: Place, member: bytes) -> Tensor:
        epoch, shard, row = place
        rng = np.random.default_rng([self._seed, 3, epoch, shard, row])
        try:
            image = Image.open(io.BytesIO(member)).convert("RGB")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self._dataset.shards[shard].tar}: image {row} cannot be decoded ({error}). "
                "Run `lotlip-data verify` on the run."
            ) from error
        return self._transform.normalise(random_crop(image, self._transform, self._crop, rng))


class Tar:
    """A shard's tar, mapped into memory: where it is local as it lies, else as a copy that goes with this process."""

    def __init__(self, shard: Shard) -> None:
        try:
            with _local(shard.tar) as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    self._where = [(m.offset_data, m.size) for m in tar if m.name.endswith(f".{IMAGE_EXTENSION}")]
        except (OSError, ValueError, tarfile.TarError) as error:
            raise DataError(f"{shard.tar}: cannot be read ({error}). Run `lotlip-data verify` on the run.") from error
        if len(self._where) != shard.samples:
            raise DataError(
                f"{shard.tar}: {len(self._where)} images, dataset.json says {shard.samples}. "
                "Run `lotlip-data verify` on the run."
            )

    def member(self, row: int) -> bytes:
        """The encoded image of a row."""
        start, size = self._where[row]
        return self._content[start : start + size]


def _local(url: str) -> IO[bytes]:
    if storage.is_local(url):
        return Path(storage.normalise(url)).open("rb")
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it, and with the map goes the last of it
    with storage.open_read(url) as source:
        while some := source.read(COPY):
            copy.write(some)
    copy.seek(0)
    return cast(IO[bytes], copy)
