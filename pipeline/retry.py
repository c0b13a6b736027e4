"""Images that are fetched again: rounds of further shards, behind those that there are.

    failures that can pass → lists/retry-0001.json → out of their shards' quarantine → lists/00012.parquet …

What is committed stays as it is, and captions stay paired: an image that comes the second time is one of a new shard,
which every later stage takes for any other. The round's own object is created first, exclusively, and says which rows
it is about; all that follows is made from it and from what is committed, so whoever is killed, the next download goes
on with the very same shards. A row of a round is one that waits to be fetched, no longer one that failed: it leaves
the quarantine before it can be fetched.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.layout import SHARD_DIGITS, Run, shard_name
from lotlip_data.manifests.schema import LISTS, SUCCESS
from lotlip_data.pipeline import fetch_reasons
from lotlip_data.pipeline.fetch_commit import failed_rows, quarantined, read_marker

_READERS = 16

Marker = Mapping[str, Any]


@dataclass(frozen=True)
class Round:
    """The rows of the shards `sources` that failed for one of `reasons`, in the shards from `first` on."""

    first: int
    shards: int
    rows: int
    samples_per_shard: int
    reasons: tuple[str, ...]
    sources: tuple[int, ...]


def rounds(run: Run) -> list[Round]:
    """All rounds of the run, the earliest first."""
    found = []
    for name in storage.list_names(run.lists):
        if name.startswith("retry-"):
            content = json.loads(storage.read_bytes(storage.join(run.lists, name)))
            found.append(Round(**content | {key: tuple(content[key]) for key in ("reasons", "sources")}))
    return found


def retried(every: Iterable[Round]) -> dict[int, frozenset[str]]:
    """By shard, the reasons of those of its failures that belong to a round."""
    return {shard: frozenset(one.reasons) for one in every for shard in one.sources}


def open_round(
    run: Run, before: list[Round], first: int, samples_per_shard: int, markers: Mapping[int, Marker]
) -> bool:
    """Begin a round of all failures of `markers` that can pass and are in no round yet. Whether there are any.

    `first`: the number of its first shard. Of two drivers, the first one's round counts. Raises UserError where there
    is no number left.
    """
    done = retried(before)
    counts = {
        shard: {reason: count for reason, count in marker["status_dict"].items() if fetch_reasons.can_pass(reason)}
        for shard, marker in sorted(markers.items())
        if shard not in done
    }
    sources = tuple(shard for shard, found in counts.items() if found)
    if not sources:
        return False
    rows = sum(sum(found.values()) for found in counts.values())
    shards = -(-rows // samples_per_shard)
    if first + shards > 10**SHARD_DIGITS:
        raise UserError(f"{run.url}: no more than {10**SHARD_DIGITS} shards fit into a run, those of retries included")
    reasons = tuple(sorted({reason for found in counts.values() for reason in found} - {SUCCESS}))
    content = asdict(Round(first, shards, rows, samples_per_shard, reasons, sources))
    storage.create(run.retry(len(before) + 1), json.dumps(content).encode())
    return True


def prepare(run: Run, one: Round, markers: Mapping[int, Marker]) -> None:
    """Take the round's rows out of quarantine and write its list shards, unless these are all there."""
    there = set(storage.list_names(run.lists))
    shards = range(one.first, one.first + one.shards)
    if all(f"{shard_name(shard)}.parquet" in there for shard in shards):
        return
    for shard, failed in _failed(run, one, markers):
        storage.replace(run.quarantine("images", f"{shard_name(shard)}.parquet"), quarantined(failed, one.reasons))
    # Only now may its shards be fetched: an image is never in quarantine as well.
    waiting, shard = LISTS.empty_table(), one.first
    for _, failed in _failed(run, one, markers):
        again = failed.filter(pc.is_in(failed["reason"], pa.array(one.reasons, pa.string())))
        waiting = pa.concat_tables([waiting, again.select(LISTS.names)])
        while waiting.num_rows >= one.samples_per_shard:
            _store(run, shard, waiting.slice(0, one.samples_per_shard))
            waiting, shard = waiting.slice(one.samples_per_shard), shard + 1
    if waiting.num_rows:
        _store(run, shard, waiting)


def _failed(run: Run, one: Round, markers: Mapping[int, Marker]) -> Iterator[tuple[int, pa.Table]]:
    """The failures of each shard that the round takes rows from, in order, a few shards read ahead."""

    def read(shard: int) -> pa.Table:
        marker = markers.get(shard) or read_marker(run, shard)  # committed and retried by another driver
        return failed_rows(run, marker, [*LISTS.names, "key"])

    with ThreadPoolExecutor(_READERS) as pool:
        for begin in range(0, len(one.sources), 2 * _READERS):
            some = one.sources[begin : begin + 2 * _READERS]
            yield from zip(some, pool.map(read, some), strict=True)


def _store(run: Run, shard: int, rows: pa.Table) -> None:
    stream = io.BytesIO()
    pq.write_table(rows.cast(LISTS).combine_chunks(), stream, compression="zstd")
    storage.create(run.list_shard(shard), stream.getvalue())
