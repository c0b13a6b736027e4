"""Estimates of the number of images that a run will have, and of the bytes that its images and dataset take.

Where a run has images, the estimates follow from them; otherwise they follow from the manifest's image size.
"""

from dataclasses import dataclass
from typing import TypedDict

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.dataset_index import read_dataset_summary
from lotlip_data.manifests.iteration import evenly
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.wording import count
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading import retry
from lotlip_data.pipeline.url_lists.partition import load_partition

BYTES_PER_PIXEL = 0.3
"""Of a JPEG at quality 95, assumed."""
ASPECT_RATIO = 4 / 3
TEXT_BYTES = 4_000
"""Bytes of the texts of one sample, assumed."""
SAMPLED_SHARDS = 20
"""Maximum number of downloaded shards, evenly spaced, whose sizes are requested."""


@dataclass(frozen=True)
class MeasuredStorage:
    """The storage of an existing run."""

    images: int
    """Estimated number of images that the run will have."""
    image_bytes: float
    """Mean size of one downloaded image with its row."""
    sampled_shards: int
    """Number of image shards from which `image_bytes` is taken."""
    dataset_bytes: float | None
    """Size of the dataset per downloaded image; None if the run has no dataset yet."""


class StorageEstimate(TypedDict):
    """Estimated bytes, as `plan --json` prints them; None if the number of images is unknown."""

    images: int | None
    dataset: int | None
    assumes: str
    """What the estimate is based on."""


def estimate_storage(
    manifest: Manifest, images: int | None, measured: MeasuredStorage | None = None, stored: int | None = None
) -> StorageEstimate:
    """Estimate the bytes of the images and of the dataset.

    Args:
        manifest: The manifest, for its image size.
        images: Number of images, or None if it is unknown.
        measured: The storage of an existing run. It replaces the other arguments.
        stored: Number of images that the run stores itself; the others stay where they are. Default: all.
    """
    if measured is not None:
        return _from_measured(measured)
    side = manifest.download.image_size
    image_bytes = round(side * side * ASPECT_RATIO * BYTES_PER_PIXEL)
    return {
        "images": None if images is None else (images if stored is None else stored) * image_bytes,
        "dataset": None if images is None else images * (image_bytes + TEXT_BYTES),
        "assumes": (
            f"every URL returns an image of {side} × {round(side * ASPECT_RATIO)} pixels at {BYTES_PER_PIXEL} bytes "
            f"per pixel (JPEG quality 95), which is {image_bytes:,} bytes, with {TEXT_BYTES:,} bytes of texts; these "
            "values are not measured and probably too high, since some URLs fail and many images are smaller; the "
            "dataset holds a second copy of the images"
        ),
    }


def _from_measured(measured: MeasuredStorage) -> StorageEstimate:
    image_bytes, dataset_bytes = measured.image_bytes, measured.dataset_bytes
    shards = count(measured.sampled_shards, "downloaded shard")
    dataset = f"{TEXT_BYTES:,} bytes of texts (assumed); the dataset holds a second copy of the images"
    if dataset_bytes is not None:
        dataset = f"{round(dataset_bytes):,} bytes in the dataset, as in the run's existing dataset"
    else:
        dataset_bytes = image_bytes + TEXT_BYTES
    return {
        "images": round(measured.images * image_bytes),
        "dataset": round(measured.images * dataset_bytes),
        "assumes": (
            f"each of {measured.images:,} images takes {round(image_bytes):,} bytes, as in {shards} of the run, and "
            f"{dataset}"
        ),
    }


def estimate_images(run: Run) -> tuple[int, str] | None:
    """Estimate the number of images that a run will have.

        images = downloaded images + remaining rows × downloaded images / rows of the downloaded shards

    Returns:
        The number and what it assumes (nothing once every row is downloaded); None before the lists are partitioned.
    """
    partition = load_partition(run)
    if partition is None:
        return None
    rows = {shard: partition.rows_of(shard) for shard in range(partition.shards)}
    for retry_round in retry.rounds(run):
        rows |= _rows_per_shard(retry_round.first, retry_round.shards, retry_round.rows, retry_round.samples_per_shard)
    downloaded = ledger.fetched_shards(run)
    rows |= {shard: record.rows for shard, record in ledger.recorded(run.image_ledger).items() if shard in rows}
    images = ledger.fetched_images(run, downloaded)
    tried = sum(rows.get(shard, 0) for shard in downloaded)
    remaining = sum(rows.values()) - tried
    if not remaining:
        return images, ""
    share = images / tried if tried else 1.0
    basis = "the same share as so far" if tried else "assumed, because nothing is downloaded yet"
    assumption = f"{remaining:,} rows are not downloaded yet; {share:.1%} of them return an image ({basis})"
    return images + round(remaining * share), assumption


def _rows_per_shard(first_shard: int, shards: int, rows: int, samples_per_shard: int) -> dict[int, int]:
    """Return the number of rows of each shard; all shards but the last are full."""
    return {first_shard + index: min(samples_per_shard, rows - index * samples_per_shard) for index in range(shards)}


def measure_storage(run: Run) -> MeasuredStorage | None:
    """Return the storage of a run, or None if it has no downloaded image. The dataset's is taken from dataset.json."""
    estimate = estimate_images(run)
    shards = evenly(ledger.fetched_shards(run), SAMPLED_SHARDS)
    sizes = [size for shard in shards if (size := _shard_size(run, shard))]
    images = sum(count for count, _ in sizes)
    if estimate is None or not images:
        return None
    dataset = read_dataset_summary(run) if storage.exists(run.dataset) else {"fetched": 0}
    return MeasuredStorage(
        images=estimate[0],
        image_bytes=sum(size for _, size in sizes) / images,
        sampled_shards=len(sizes),
        dataset_bytes=dataset["bytes"] / dataset["fetched"] if dataset["fetched"] else None,
    )


def _shard_size(run: Run, shard: int) -> tuple[int, int] | None:
    """Return images and bytes of a downloaded shard; None if a file is missing or the storage reports no sizes.

    Images that stay where they are have the bytes of their container: the dataset holds a copy of them.
    """
    stats = ledger.read_image_stats(run, shard)
    parquet = storage.size(run.image_file(stats["parquet"]))
    if "tar" in stats:
        images = storage.size(run.image_file(stats["tar"]))
    else:
        digest = stats.get("container_digest")
        images = digest.bytes if digest is not None else None
    return None if images is None or parquet is None else (stats["successes"], images + parquet)
