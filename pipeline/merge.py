"""Rows with equal uids into one image: its texts and where each came from, and the hashes that its lists expect."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests.schema import LISTS

_HASHES = ("expected_sha256", "expected_md5")


def merge(rows: pa.Table, names: list[str]) -> pa.Table:
    """Rows of `partition`, all that some uids have, in the seeded order and merged: a table of `schema.LISTS`."""
    rows = rows.sort_by([("order", "ascending"), ("uid", "ascending"), ("ordinal", "ascending")]).combine_chunks()
    # One thread keeps the order; the first hash is the first that is not null.
    expected = rows.group_by("uid", use_threads=False).aggregate([(kind, "first") for kind in _HASHES])
    rows = rows.filter(pa.array(_distinct(rows)))
    starts = _starts(rows)
    offsets = pa.array(np.append(starts, rows.num_rows), pa.int32())
    sources = pa.DictionaryArray.from_arrays(_one(rows["source"]), pa.array(names)).dictionary_decode()
    first = rows.take(pa.array(starts))
    return pa.table(
        [
            _one(first["uid"]),
            _one(first["url"]),
            pa.ListArray.from_arrays(offsets, _one(rows["text"])),
            pa.ListArray.from_arrays(offsets, sources),
            *(_one(expected[f"{kind}_first"]) for kind in _HASHES),
        ],
        schema=LISTS,
    )


def _starts(rows: pa.Table) -> np.ndarray:
    """Where each uid begins in rows sorted by it; int64."""
    if not (count := rows.num_rows):
        return np.empty(0, np.int64)
    uids = _one(rows["uid"])  # compared as Arrow has them: a Python object for each would scatter the heap
    others = pc.not_equal(uids.slice(1), uids.slice(0, count - 1)).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.append(True, others))


def _distinct(rows: pa.Table) -> np.ndarray:
    """False for a row whose source and text an earlier row of the same uid has; bool, one a row."""
    keep = np.ones(rows.num_rows, bool)
    starts = np.append(_starts(rows), rows.num_rows)
    for index in np.flatnonzero(np.diff(starts) > 1):
        begin, end = int(starts[index]), int(starts[index + 1])
        group = rows.slice(begin, end - begin)
        seen: set[tuple[int, str]] = set()
        for offset, pair in enumerate(zip(group["source"].to_pylist(), group["text"].to_pylist(), strict=True)):
            keep[begin + offset] = pair not in seen
            seen.add(pair)
    return keep


def _one(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
