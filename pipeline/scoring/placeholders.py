"""Counts under how many URLs a picture stands: `placeholder`, which finds pictures such as "image not available".

The score of an image is the number of URLs of its host, its own included, whose pictures are equal to its own: by the
downloaded bytes, or by perceptual hashes that differ in at most `distance` of 64 bits. An image that cannot be decoded
has no perceptual hash and is compared by its bytes alone.

Only URLs of one host count. A host answers with the same placeholder for all its missing pictures. A popular photo
stands on many hosts, but under few URLs of each. With `within: run`, the URLs of all hosts count; this also finds
placeholders of a service that many hosts use, and popular photos with them. The host is the whole name, so
farm1.example.com and farm2.example.com are two. Images without a URL have no host. They are compared with one another,
since the folder or tar in which an image lies says little about where it came from.

Each shard is reduced to its distinct pictures per host, with the number of its images that show each. So a placeholder
of a million URLs is one row per shard, and memory does not grow with it. Near pictures are searched as in
`curation.near_duplicates`.

Measured at distance 4: 30 million images took 207 s of one core, 416 MiB of memory and 3.3 GB of disk; 2 million took
359 MiB. 100 million different pictures take 11 GB of disk (calculated).
"""

import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field

from lotlip_data.manifests.settings.base import Settings
from lotlip_data.pipeline.core.spilled_rows import ROWS_PER_BUCKET, SpilledRows
from lotlip_data.pipeline.curation.near_duplicates import bands, near_pairs
from lotlip_data.pipeline.curation.perceptual_hash import perceptual_hash
from lotlip_data.pipeline.scoring.base import ImageScores, ScoredImage, Survey
from lotlip_data.pipeline.scoring.by_shard import BUFFER_BYTES, NumbersByShard, mix, pack, stable_hash, unpack

_COLUMNS = 4
"""Columns of the file of distinct pictures: key, perceptual hash, host, images."""


class PlaceholderOptions(Settings):
    """Options of the kind `placeholder`."""

    distance: Annotated[int, Field(ge=0, le=8)] | None = 4
    """The largest number of bits of 64 that may differ between the perceptual hashes of equal pictures. null: pictures
    are equal if their bytes are, and no image is decoded."""
    within: Literal["host", "run"] = "host"
    """Whether the URLs of the image's host count, or those of the whole run."""


class Placeholder:
    """Scores images by the number of URLs under which their picture stands."""

    scores: ClassVar[Literal["texts", "images"]] = "images"
    reads_images: ClassVar[bool] = True
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    needs_model: ClassVar[bool] = False
    settings_type: ClassVar[type[Settings]] = PlaceholderOptions

    def __init__(self, model: str | None, options: PlaceholderOptions, device: str | None = None) -> None:
        self.options = options

    @property
    def identity(self) -> dict[str, Any]:
        return {"version": 1, **self.options.model_dump()}

    def survey(self, images: Iterable[ScoredImage]) -> Survey:
        """The picture and the host of each image, as numbers."""
        rows = np.array([self._numbers(image) for image in images], np.uint64).reshape(-1, 2)
        return Survey((rows[:, 0].copy(), rows[:, 1].copy()))

    def combine(
        self, surveys: Iterable[tuple[int, Survey]], rows: int, folder: Path
    ) -> Iterator[tuple[int, np.ndarray]]:
        """See DatasetScorer."""
        (folder / "images").mkdir()
        table = SpilledRows(folder / "pictures", rows, "picture", "host", "packed", buffer_bytes=BUFFER_BYTES)
        for shard, survey in surveys:
            pictures, hosts = survey.columns
            keys, first, index, counts = np.unique(
                mix(mix(pictures) ^ hosts), return_index=True, return_inverse=True, return_counts=True
            )
            table.add(keys, pictures[first], hosts[first], pack(shard, counts.astype(np.uint64)))
            np.save(folder / "images" / str(shard), index.astype(np.uint32))
        table.flush()
        near = self._count_near(table, folder)
        sums = NumbersByShard(folder / "sums", rows)
        for number in range(table.count):
            keys, _, _, packed = table.bucket(number)
            shards, images = unpack(packed)
            near_keys, near_images = near.bucket(number)
            distinct, index = np.unique(np.concatenate([keys, near_keys]), return_inverse=True)
            totals = np.zeros(len(distinct), np.uint64)
            np.add.at(totals, index, np.concatenate([images, near_images]))
            # The pictures of a shard are in the order of the keys, and so are these sums.
            order = np.argsort(keys, kind="stable")
            sums.add(pack(shards[order], totals[index[: len(keys)][order]]))
        for shard, (values,) in sums:
            yield shard, values[np.load(folder / "images" / f"{shard}.npy")].astype(np.float64)

    def assign(self, images: Iterable[ScoredImage], numbers: Sequence[float]) -> Iterator[ImageScores]:
        """The scores of each image: its number."""
        for _, number in zip(images, numbers, strict=True):
            yield ImageScores(image=float(number))

    def _numbers(self, image: ScoredImage) -> tuple[int, int]:
        """A number for the picture, and one for those that it is compared with."""
        host = _host(image.url) if self.options.within == "host" else ""
        if self.options.distance is not None:
            picture = perceptual_hash(image.content)
            if picture is not None:
                return picture, stable_hash(f"picture {host}")
        return int(image.sha256[:16], 16), stable_hash(f"bytes {host}")

    def _count_near(self, table: SpilledRows, folder: Path) -> SpilledRows:
        """Columns (key, images) for pictures: the images of other pictures that are near it, in parts.

        It has the buckets of `table`, whose columns are key, picture, host, and packed shard and images.
        """
        near = SpilledRows(folder / "near", table.rows, "images", buffer_bytes=BUFFER_BYTES)
        if self.options.distance:
            count = _write_distinct(table, folder / "distinct")
            masks = [np.bitwise_or(*pair) for pair in itertools.combinations(bands(self.options.distance), 2)]
            for number in range(len(masks)):
                scratch = folder / "bands"
                _add_near(folder / "distinct", count, masks[: number + 1], self.options.distance, scratch, near)
                shutil.rmtree(scratch)
        near.flush()
        return near


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _write_distinct(table: SpilledRows, path: Path) -> int:
    """Write each picture of a host once, with the number of its images. Returns the number of pictures."""
    count = 0
    with open(path, "wb") as file:
        for keys, pictures, hosts, packed in table:
            distinct, first, index = np.unique(keys, return_index=True, return_inverse=True)
            images = np.zeros(len(distinct), np.uint64)
            np.add.at(images, index, unpack(packed)[1])
            np.stack([distinct, pictures[first], hosts[first], images], axis=1).tofile(file)
            count += len(distinct)
    return count


def _add_near(
    path: Path, count: int, masks: Sequence[np.uint64], distance: int, folder: Path, near: SpilledRows
) -> None:
    """Add the images of near pictures of the same host that agree on the last of `masks`, and on none before it.

    Args:
        path: The file of distinct pictures.
        count: Their number.
        masks: Bits of two bands each.
        distance: The largest number of bits that may differ.
        folder: A scratch folder, created here.
        near: Receives the rows.
    """
    blocks = SpilledRows(folder, count, "key", "picture", "host", "images", buffer_bytes=BUFFER_BYTES)
    with open(path, "rb") as file:
        while len(block := np.fromfile(file, np.uint64, _COLUMNS * ROWS_PER_BUCKET)):
            key, picture, host, images = (block[column::_COLUMNS] for column in range(_COLUMNS))
            blocks.add(mix(mix(picture & masks[-1]) ^ host), key, picture, host, images)
    for rows in blocks.drain():
        order = np.argsort(rows[0], kind="stable")
        band, key, picture, host, images = (column[order] for column in rows)
        added = np.zeros(len(key), np.uint64)
        for left, right in near_pairs(band, picture, distance):
            differing = picture[left] ^ picture[right]
            is_first = (host[left] == host[right]) & ((differing & masks[-1]) == 0)
            for mask in masks[:-1]:
                is_first &= (differing & mask) != 0
            left, right = left[is_first], right[is_first]
            added[left] += images[right]
            added[right] += images[left]
        has_near = np.flatnonzero(added)
        near.add(key[has_near], added[has_near])
