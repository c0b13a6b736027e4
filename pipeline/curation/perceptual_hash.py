"""Perceptual hashes: 64 bits an image that hardly change when it is scaled, compressed or touched up a little.

The hash is imagehash's `phash` (Zauner, 2010): which of the 8 × 8 lowest frequencies of the image's cosine transform
are above their median. Images are alike where few of the 64 bits differ.
"""

import io
import warnings
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.downloading.reader import fetched_images

HASHES = pa.schema([("uid", pa.string()), ("phash", pa.uint64())])
"""clean/hashes/*.parquet: one row a fetched image; `phash` is null where the image cannot be decoded."""

DRAFT = 256
"""JPEGs are decoded at an eighth, a quarter or half of their size as long as that leaves so many pixels a side."""
_PAIRS = 1 << 22


def perceptual_hash(content: bytes) -> int | None:
    """The hash of an image file; None where it cannot be decoded."""
    import imagehash
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            image.draft("L", (DRAFT, DRAFT))
            bits = imagehash.phash(ImageOps.exif_transpose(image)).hash
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombWarning,
            Image.DecompressionBombError):  # fmt: skip
        return None
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def shard_hashes(run: Run, shard: int, stamp: str) -> dict[str, int | None]:
    """The hashes of a fetched shard by uid, made and committed once for each `stamp` of its images."""
    url = run.clean("hashes", f"{shard_name(shard)}-{stamp}.parquet")
    if not storage.exists(url):
        found = [{"uid": image.uid, "phash": perceptual_hash(image.image)} for image in fetched_images(run, shard)]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(found, schema=HASHES), buffer, compression="zstd")
        storage.create(url, buffer.getvalue())
    table = artifacts.read_parquet(url, f"Remove {url}; `lotlip-data shard` makes it again.")
    return dict(zip(table["uid"].to_pylist(), table["phash"].to_pylist(), strict=True))


def is_within_distance(hashes: np.ndarray, others: np.ndarray, distance: int) -> Iterable[tuple[int, int]]:
    """(i, j) for each of `hashes` (uint64, n) that some of `others` (uint64, m) is near: j is the nearest, then first.

    All n·m pairs are looked at, a block at a time.
    """
    block = max(1, _PAIRS // max(1, len(others)))
    for start in range(0, len(hashes) if len(others) else 0, block):
        distances = np.bitwise_count(hashes[start : start + block, None] ^ others[None, :])
        nearest = distances.argmin(axis=1)
        for row in np.flatnonzero(distances.min(axis=1) <= distance):
            yield start + int(row), int(nearest[row])
