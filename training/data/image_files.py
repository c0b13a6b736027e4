"""Images that models embed: the files of a folder, and the samples of a run's dataset. Each has a name and a stamp."""

import io
import os
from collections.abc import Iterator
from typing import Protocol

import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.formats.dataset_index import ShardFile
from lotlip_data.manifests.run_layout import Run
from lotlip_data.training.data.dataset import shard_cache
from lotlip_data.training.data.pixel_reader import ImageTar

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_OPEN_SHARDS = 4


class ImageFiles(Protocol):
    """Images with names."""

    def stamps(self) -> Iterator[tuple[str, str]]:
        """The name of each image, and a stamp that changes when the image does. In any order, one at a time."""

    def read(self, name: str) -> Image.Image | str:
        """The image in RGB, upright, or the reason for which it cannot be read. Threads may call it at once."""


class FolderImages:
    """The image files below a folder, a local path or an fsspec URL, by their paths in it.

    A stamp has the size and the time of change, of an object store also what it says of the content.
    """

    def __init__(self, folder: str) -> None:
        self.folder = storage.normalise(folder)

    def stamps(self) -> Iterator[tuple[str, str]]:
        stamps = _local_stamps(self.folder) if storage.is_local(self.folder) else _remote_stamps(self.folder)
        return ((name, stamp) for name, stamp in stamps if name.lower().endswith(IMAGE_EXTENSIONS))

    def read(self, name: str) -> Image.Image | str:
        try:
            with storage.open_read(storage.join(self.folder, name)) as file:
                return upright(Image.open(file))
        except UnidentifiedImageError:
            return "is not an image, or its format is not supported"
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            return str(error)


class DatasetImages:
    """The samples of a run's dataset, by shard and key: `train-00000/000000012`. The stamp is the digest of the tar."""

    def __init__(self, run: str) -> None:
        layout = Run.at(run)
        self._shards = dataset_index.shard_files(layout, dataset_index.read_samples_index(layout))
        self._numbers = {_stem(shard): number for number, shard in enumerate(self._shards)}
        self._tar = shard_cache(lambda number: ImageTar(self._shards[number]), _OPEN_SHARDS)
        self._rows = shard_cache(self._row_of_key, _OPEN_SHARDS)

    def stamps(self) -> Iterator[tuple[str, str]]:
        for number, shard in enumerate(self._shards):
            for key in self._row_of_key(number):
                yield f"{_stem(shard)}/{key}", shard.tar.digest.sha256

    def read(self, name: str) -> Image.Image | str:
        stem, _, key = name.rpartition("/")
        number = self._numbers[stem]
        try:
            return upright(Image.open(io.BytesIO(self._tar(number).read(self._rows(number)[key]))))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            return str(error)

    def _row_of_key(self, number: int) -> dict[str, int]:
        with storage.open_read(self._shards[number].parquet_url) as file:
            keys = pq.read_table(file, columns=["key"]).column("key").to_pylist()
        return {key: row for row, key in enumerate(keys)}


def _stem(shard: ShardFile) -> str:
    return shard.tar.name.removesuffix(".tar")


def upright(image: Image.Image) -> Image.Image:
    """The image in RGB, turned as its EXIF data says."""
    return ImageOps.exif_transpose(image).convert("RGB")


def require_images(found: bool, folder: str) -> None:
    """Raise UserError unless a folder has images."""
    if not found:
        if not storage.is_folder(folder):
            problem = "is a file; give a folder of images" if storage.exists(folder) else "there is no such folder"
            raise UserError(f"{folder}: {problem}")
        raise UserError(f"{folder}: has no images; supported extensions are {', '.join(IMAGE_EXTENSIONS)}")


def _local_stamps(folder: str) -> Iterator[tuple[str, str]]:
    """The files below a local folder, one at a time: a folder may have millions."""
    pending = [""]
    while pending:
        below = pending.pop()
        try:
            with os.scandir(os.path.join(folder, below)) as entries:  # noqa: PTH118
                for entry in entries:
                    name = os.path.join(below, entry.name)  # noqa: PTH118
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(name)
                    elif entry.is_file():
                        status = entry.stat()
                        yield name, f"{status.st_size} {status.st_mtime_ns}"
                    elif entry.is_symlink() and not entry.is_dir():  # a link to nothing, which cannot be read
                        yield name, "link"
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed in the meantime, or there is no such folder


def _remote_stamps(folder: str) -> Iterator[tuple[str, str]]:
    return iter(storage.stamps_below(folder).items())
