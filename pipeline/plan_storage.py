"""Bytes that images and dataset will take: as those of a run that has some, else by the size that is asked for."""

from dataclasses import dataclass
from typing import Any

from lotlip_data.manifests.manifest import Manifest

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
