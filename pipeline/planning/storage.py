"""Bytes that images and dataset will take: as those of a run that has some, else by the size that is asked for.

How many images a run will have, and of how many bytes: as those that it has, of rows that it has not fetched yet.
"""

from dataclasses import dataclass
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.dataset_index import read_dataset_summary
from lotlip_data.manifests.iteration import evenly
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading import retry
from lotlip_data.pipeline.url_lists.partition import load_partition

BYTES_A_PIXEL = 0.3
ASPECT = 4 / 3
TEXT_BYTES = 4_000


@dataclass(frozen=True)
class Stored:
    """What a run has stored. images: that it will have. The others are bytes of one fetched image.

    dataset: None where the run has no dataset yet. looked_at: image shards that `image` is taken from.
    """

    images: int
    image: float
    looked_at: int
    dataset: float | None


def storage_of(manifest: Manifest, images: int | None, stored: Stored | None = None) -> dict[str, Any]:
    """Bytes of the images and of the dataset, with what they assume. images: where no run says it."""
    if stored is not None:
        return _as_stored(stored)
    side = manifest.download.image_size
    each = round(side * side * ASPECT * BYTES_A_PIXEL)
    return {
        "images": None if images is None else images * each,
        "dataset": None if images is None else images * (each + TEXT_BYTES),
        "assumes": (
            f"every link is alive and every image has {side} × {round(side * ASPECT)} pixels at {BYTES_A_PIXEL} bytes "
            f"a pixel (JPEG quality 95) = {each:,} bytes, and {TEXT_BYTES:,} bytes of texts: assumed, not measured, "
            "and probably too much, since links die and many images are smaller; the dataset holds the images once more"
        ),
    }


def _as_stored(stored: Stored) -> dict[str, Any]:
    each, whole = round(stored.image), stored.dataset
    shards = f"{stored.looked_at} fetched shard{'' if stored.looked_at == 1 else 's'}"
    dataset = f"{TEXT_BYTES:,} bytes of texts: assumed; the dataset holds the images once more"
    if whole is not None:
        dataset = f"{round(whole):,} bytes of the dataset, as in the one that the run has"
    return {
        "images": round(stored.images * stored.image),
        "dataset": round(stored.images * (stored.image + TEXT_BYTES if whole is None else whole)),
        "assumes": f"each of {stored.images:,} images takes {each:,} bytes, as in {shards} of the run, and {dataset}",
    }


def in_bytes(count: float) -> str:
    """For people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


LOOKED_AT = 20
"""Fetched shards whose sizes are asked for, at most, evenly chosen among all."""


def images_of(run: Run) -> tuple[int, str] | None:
    """Images, and what their number assumes: nothing once all is fetched. None before the lists are cut into shards.

    images = fetched images + rows left × fetched images / rows of the fetched shards
    """
    plan = load_partition(run)
    if plan is None:
        return None
    sizes = _sizes(0, plan.shards, plan.images, plan.samples_per_shard)
    for one in retry.rounds(run):
        sizes |= _sizes(one.first, one.shards, one.rows, one.samples_per_shard)
    fetched = ledger.fetched_shards(run)
    images = ledger.fetched_images(run, fetched)
    tried = sum(sizes.get(shard, 0) for shard in fetched)
    left = sum(sizes.values()) - tried
    if not left:
        return images, ""
    share = images / tried if tried else 1.0
    because = "as of those that are" if tried else "assumed: nothing is fetched"
    assumed = f"{left:,} rows are not fetched yet; {share:.1%} of them give an image, {because}"
    return images + round(left * share), assumed


def _sizes(first: int, shards: int, rows: int, full: int) -> dict[int, int]:
    """Rows of each shard: all are full but the last."""
    return {first + number: min(full, rows - number * full) for number in range(shards)}


def stored_by(run: Run) -> Stored | None:
    """What its images and its dataset take, the dataset by its own description. None where no image is fetched."""
    found = images_of(run)
    sizes = [size for shard in evenly(ledger.fetched_shards(run), LOOKED_AT) if (size := _size_of(run, shard))]
    images = sum(count for count, _ in sizes)
    if found is None or not images:
        return None
    described = read_dataset_summary(run) if storage.exists(run.dataset) else {"fetched": 0}
    dataset = described["bytes"] / described["fetched"] if described["fetched"] else None
    return Stored(found[0], sum(size for _, size in sizes) / images, len(sizes), dataset)


def _size_of(run: Run, shard: int) -> tuple[int, int] | None:
    """Images and bytes of a fetched shard; None where a file of it is missing, or its storage tells no sizes."""
    marker = ledger.read_image_stats(run, shard)
    tar, rows = (storage.size(storage.join(run.images, marker[kind])) for kind in ("tar", "parquet"))
    return None if tar is None or rows is None else (marker["successes"], tar + rows)
