"""Draws exact samples out of core: the images with the lowest hashes, of a source or of the whole manifest."""

import hashlib
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.core.external_buckets import ExternalBuckets

ALL = 2**64 - 1
"""The highest hash."""

_SCHEMA = pa.schema([("order", pa.uint64())])
SAMPLER_BUCKETS = 256  # of eight bytes per row: 80 MB each for 2.5 billion rows
SAMPLER_BUFFER_BYTES = 8 << 20


def hashes(uids: pa.Array, key: str) -> np.ndarray:
    """A uniform hash per uid, uint64. Hashes with different keys are independent."""
    secret = key.encode()
    digests = (hashlib.blake2b(uid.encode(), key=secret, digest_size=8).digest() for uid in uids.to_pylist())
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def sample_key(source: Source) -> str:
    """The key of the hashes by which the sample of a source is drawn."""
    return f"sample {source.seed}"


class SourceSampler:
    """Draws the `sample` of a source: the images with the lowest hashes of a key that is the source's own.

    Args:
        folder: The scratch folder, where the sampler has a folder of its own.
        source: A source with a `sample`.
    """

    def __init__(self, folder: pathlib.Path, source: Source) -> None:
        assert source.sample is not None
        self._sample, self._key = source.sample, sample_key(source)
        own_folder = folder / f"sample-{source.name}"
        own_folder.mkdir()
        self._buckets = ExternalBuckets(own_folder, SAMPLER_BUCKETS, _SCHEMA, SAMPLER_BUFFER_BYTES)
        self._limit: int | None = None

    def add(self, uids: pa.Array) -> None:
        """Add the uids of rows of the source. A uid counts once, however often it is added."""
        self._buckets.add(pa.table([hashes(uids, self._key)], schema=_SCHEMA))

    def mask(self, rows: pa.Table, source: int) -> pa.Array:
        """Which rows to keep: those of other sources, and those that are drawn. Call it after the last `add`.

        Args:
            rows: Rows with the columns `source` and `uid`.
            source: The number of this source in the manifest.

        Returns:
            One bool per row.
        """
        if self._limit is None:
            self._limit = self._highest_drawn_hash()
        is_own = rows["source"].to_numpy() == source
        keep = ~is_own
        keep[is_own] = hashes(rows["uid"].filter(pa.array(is_own)), self._key) <= np.uint64(self._limit)
        return pa.array(keep)

    def _highest_drawn_hash(self) -> int:
        self._buckets.flush()
        left = self._sample
        for bucket in self._buckets:
            distinct = np.unique(bucket["order"].to_numpy())
            if len(distinct) >= left:
                return int(distinct[left - 1])
            left -= len(distinct)
        return ALL


def split_sample(
    sample: int,
    buckets: ExternalBuckets,
    samplers: Mapping[int, SourceSampler],
    other_ranks: Callable[[int, int], np.ndarray],
) -> tuple[int, int]:
    """Draw a manifest's sample from the rows of its lists and from the images that exist already.

    Args:
        sample: The number of images to draw.
        buckets: The rows of the lists, in the order of the hashes of their uids with the manifest's seed.
        samplers: By number of a source with a sample of its own, that sample.
        other_ranks: The hashes of the images that exist already in a bucket. Arguments: its number, and how many there
            are.

    Returns:
        The number of images that are drawn from the lists, and the highest hash that is drawn.
    """
    drawn = listed = 0
    for number in range(buckets.count):
        rows = buckets.bucket(number)
        for source, sampler in samplers.items():
            rows = rows.filter(sampler.mask(rows, source))
        own, others = np.unique(rows["order"].to_numpy()), other_ranks(number, buckets.count)
        if drawn + len(own) + len(others) >= sample:
            highest = np.sort(np.concatenate([own, others]))[sample - drawn - 1]
            return listed + int(np.count_nonzero(own <= highest)), int(highest)
        drawn, listed = drawn + len(own) + len(others), listed + len(own)
    return listed, ALL
