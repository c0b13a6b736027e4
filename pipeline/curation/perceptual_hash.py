"""Computes perceptual hashes: 64 bits per image that hardly change when it is scaled, compressed or retouched.

The hash is imagehash's `phash` (Zauner, 2010): which of the 8 × 8 lowest frequencies of the image's cosine transform
are above their median. Two images look alike if few of the 64 bits differ.
"""

import io
import warnings
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.downloading.reader import fetched_images

HASHES = pa.schema([("uid", pa.string()), ("phash", pa.uint64())])
"""clean/hashes/*.parquet: one row per downloaded image; `phash` is null if the image cannot be decoded."""

DRAFT_PIXELS = 256
"""JPEGs are decoded at an eighth, a quarter or half of their size as long as each side keeps this many pixels."""
_PAIRS_PER_BLOCK = 1 << 22


def perceptual_hash(content: bytes) -> int | None:
    """The hash of an encoded image; None if it cannot be decoded."""
    import imagehash
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            image.draft("L", (DRAFT_PIXELS, DRAFT_PIXELS))
            bits = imagehash.phash(ImageOps.exif_transpose(image)).hash
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombWarning,
            Image.DecompressionBombError):  # fmt: skip
        return None
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def shard_hashes(run: Run, shard: int, stamp: str) -> dict[str, int | None]:
    """The hashes of a downloaded shard by uid, computed and committed once for each state of its images.

    Args:
        run: The run.
        shard: The number of the shard.
        stamp: Identifies the state of the images.
    """
    url = run.image_hashes(shard, stamp)
    if not storage.exists(url):
        rows = [{"uid": image.uid, "phash": perceptual_hash(image.image)} for image in fetched_images(run, shard)]
        storage.create(url, artifacts.encode_parquet(pa.Table.from_pylist(rows, schema=HASHES)))
    table = artifacts.read_parquet(url, f"Remove {url}; `lotlip-data shard` makes it again.")
    return dict(zip(table["uid"].to_pylist(), table["phash"].to_pylist(), strict=True))


def find_near(hashes: np.ndarray, others: np.ndarray, distance: int) -> Iterator[tuple[int, int]]:
    """Find the hashes that are near one of `others`, by comparing all n·m pairs, block by block.

    Args:
        hashes: uint64 [n].
        others: uint64 [m].
        distance: The largest number of bits that may differ.

    Yields:
        (i, j) for each of `hashes` with a near one: j is the nearest of `others`, the first of equally near ones.
    """
    block = max(1, _PAIRS_PER_BLOCK // max(1, len(others)))
    for start in range(0, len(hashes) if len(others) else 0, block):
        distances = np.bitwise_count(hashes[start : start + block, None] ^ others[None, :])
        nearest = distances.argmin(axis=1)
        for row in np.flatnonzero(distances.min(axis=1) <= distance):
            yield start + int(row), int(nearest[row])
