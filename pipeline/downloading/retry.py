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
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.run_layout import SHARD_DIGITS, Run, shard_name
from lotlip_data.manifests.schema import LISTS
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading import failures as fetch_reasons
from lotlip_data.pipeline.downloading.commit import failed_rows, quarantined

_RESTORE = "It tells which images were fetched again: restore it from a copy, or begin a new run."


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
            content = artifacts.read_json(storage.join(run.lists, name), _RESTORE)
            found.append(Round(**content | {key: tuple(content[key]) for key in ("reasons", "sources")}))
    return found


def retried(every: Iterable[Round]) -> dict[int, frozenset[str]]:
    """By shard, the reasons of those of its failures that belong to a round."""
    return {shard: reasons for one in every for reasons in [frozenset(one.reasons)] for shard in one.sources}


def open_round(run: Run, before: list[Round], first: int, samples_per_shard: int, committed: Iterable[int]) -> bool:
    """Begin a round of all failures of `committed` shards that can pass and are in no round yet. Whether there are any.

    `first`: the number of its first shard. Of two drivers, the first one's round counts. Raises UserError where there
    is no number left.
    """
    done = retried(before)
    counts: Counter[str] = Counter()
    sources = []
    shards_left = [shard for shard in sorted(committed) if shard not in done]
    for shard, found in zip(shards_left, map_ordered(partial(_passing, run), shards_left), strict=True):
        if found:
            sources.append(shard)
            counts.update(found)
    if not sources:
        return False
    rows = counts.total()
    shards = -(-rows // samples_per_shard)
    if first + shards > 10**SHARD_DIGITS:
        raise UserError(f"{run.url}: no more than {10**SHARD_DIGITS} shards fit into a run, those of retries included")
    content = asdict(Round(first, shards, rows, samples_per_shard, tuple(sorted(counts)), tuple(sources)))
    storage.create(run.retry(len(before) + 1), json.dumps(content).encode())
    return True


def _passing(run: Run, shard: int) -> dict[str, int]:
    """How many of a shard's rows failed for each reason that can pass."""
    statuses = ledger.read_image_stats(run, shard)["status_dict"]
    return {reason: count for reason, count in statuses.items() if fetch_reasons.is_transient(reason)}


def prepare(run: Run, one: Round) -> None:
    """Take the round's rows out of quarantine and write its list shards, unless these are all there."""
    there = set(storage.list_names(run.lists, ".parquet"))
    shards = range(one.first, one.first + one.shards)
    if all(f"{shard_name(shard)}.parquet" in there for shard in shards):
        return
    for shard, failed in _failed(run, one):
        storage.replace(run.quarantine("images", f"{shard_name(shard)}.parquet"), quarantined(failed, one.reasons))
    # Only now may its shards be fetched: an image is never in quarantine as well.
    waiting, shard = LISTS.empty_table(), one.first
    for _, failed in _failed(run, one):
        again = failed.filter(pc.is_in(failed["reason"], pa.array(one.reasons, pa.string())))
        waiting = pa.concat_tables([waiting, again.select(LISTS.names)])
        while waiting.num_rows >= one.samples_per_shard:
            _store(run, shard, waiting.slice(0, one.samples_per_shard))
            waiting, shard = waiting.slice(one.samples_per_shard), shard + 1
    if waiting.num_rows:
        _store(run, shard, waiting)


def _failed(run: Run, one: Round) -> Iterator[tuple[int, pa.Table]]:
    """The failures of each shard that the round takes rows from, in order, a few shards read ahead."""

    def read(shard: int) -> pa.Table:
        return failed_rows(run, shard, ledger.read_image_stats(run, shard), [*LISTS.names, "key"])

    return zip(one.sources, map_ordered(read, one.sources), strict=True)


def _store(run: Run, shard: int, rows: pa.Table) -> None:
    stream = io.BytesIO()
    pq.write_table(rows.cast(LISTS).combine_chunks(), stream, compression="zstd")
    storage.create(run.list_shard(shard), stream.getvalue())
