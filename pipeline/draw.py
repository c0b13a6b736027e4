"""A source's sample: exactly so many of its images, drawn by a seed, whatever the order of its lists, out of core."""

import hashlib
import pathlib

import numpy as np
import pyarrow as pa

from lotlip_data.manifests.source import Source
from lotlip_data.pipeline.spill import Buckets

_SCHEMA = pa.schema([("order", pa.uint64())])
_BUCKETS = 256  # of eight bytes a row: 80 MB each for 2.5 billion rows
_BUFFER_BYTES = 8 << 20


def hashes(uids: pa.Array, key: str) -> np.ndarray:
    """A uniform uint64 for each uid; another `key` gives an independent one."""
    secret = key.encode()
    digests = (hashlib.blake2b(uid.encode(), key=secret, digest_size=8).digest() for uid in uids.to_pylist())
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


class Draw:
    """The `sample` images of a source with the lowest hashes; their order in the run is another hash's."""

    def __init__(self, folder: pathlib.Path, source: Source) -> None:
        assert source.sample is not None
        self._sample, self._key = source.sample, f"sample {source.seed}"
        own = folder / f"draw-{source.name}"
        own.mkdir()
        self._buckets = Buckets(own, _BUCKETS, _SCHEMA, _BUFFER_BYTES)
        self._limit: int | None = None

    def add(self, uids: pa.Array) -> None:
        """The uids of some rows; one that several rows have counts once."""
        self._buckets.add(pa.table([hashes(uids, self._key)], schema=_SCHEMA))

    def taken(self, rows: pa.Table, source: int) -> pa.Array:
        """Of rows with `source` and `uid`, those that are not this source's or are drawn; called after the last add."""
        if self._limit is None:
            self._limit = self._find_limit()
        ours = rows["source"].to_numpy() == source
        taken = ~ours
        taken[ours] = hashes(rows["uid"].filter(pa.array(ours)), self._key) <= np.uint64(self._limit)
        return pa.array(taken)

    def _find_limit(self) -> int:
        """The hash of the last image that is drawn."""
        self._buckets.flush()
        left = self._sample
        for bucket in self._buckets:
            found = np.unique(bucket["order"].to_numpy())
            if len(found) >= left:
                return int(found[left - 1])
            left -= len(found)
        return 2**64 - 1
