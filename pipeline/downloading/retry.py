"""Retries of failed images: rounds of further shards after the existing ones.

    transient failures → lists/retry-0001.json → out of their shards' quarantine → lists/00012.parquet …

Committed shards stay unchanged, and captions stay paired: an image that downloads at the second attempt belongs to a
new shard, which later stages treat like any other. The round's own object is created first, exclusively, and names its
rows. Everything else is derived from it and from committed shards, so after a kill the next download continues with
the same shards. A row of a round is pending, not failed: it leaves the quarantine before it can be downloaded.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import LISTS, ORIGIN
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.run_layout import SHARD_DIGITS, Run, shard_name
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading.commit import failed_rows, quarantine_parquet
from lotlip_data.pipeline.downloading.failures import is_transient

RESTORE = "It records which images are retried. Restore it from a copy, or start a new run."


@dataclass(frozen=True)
class Round:
    """One round: the rows of the shards `sources` that failed with one of `reasons`, in new shards from `first` on."""

    first: int
    shards: int
    rows: int
    samples_per_shard: int
    reasons: tuple[str, ...]
    sources: tuple[int, ...]


def rounds(run: Run) -> list[Round]:
    """All rounds of the run, earliest first."""
    every_round = []
    for name in storage.list_names(run.lists):
        if name.startswith("retry-"):
            every_round.append(artifacts.read_json(run.list_file(name), RESTORE, Round))
    return every_round


def retried(every: Iterable[Round]) -> dict[int, frozenset[str]]:
    """Shard → the reasons whose failures a round retries."""
    return {shard: reasons for retry in every for reasons in [frozenset(retry.reasons)] for shard in retry.sources}


def open_round(run: Run, before: list[Round], first: int, samples_per_shard: int, committed: Iterable[int]) -> bool:
    """Start a round with all transient failures of `committed` shards that no round has yet.

    Args:
        run: The run.
        before: The earlier rounds.
        first: Number of the round's first shard.
        samples_per_shard: Rows per shard.
        committed: Numbers of the committed shards.

    Returns:
        Whether there are such failures. Of two drivers, the first one's round counts.

    Raises:
        UserError: The run has no shard number left.
    """
    done = retried(before)
    counts: Counter[str] = Counter()
    sources = []
    candidates = [shard for shard in sorted(committed) if shard not in done]
    for shard, failures in zip(candidates, map_ordered(partial(_transient_failures, run), candidates), strict=True):
        if failures:
            sources.append(shard)
            counts.update(failures)
    if not sources:
        return False
    rows = counts.total()
    shards = -(-rows // samples_per_shard)
    if first + shards > 10**SHARD_DIGITS:
        raise UserError(f"{run.url}: a run holds at most {10**SHARD_DIGITS} shards, retries included")
    content = asdict(Round(first, shards, rows, samples_per_shard, tuple(sorted(counts)), tuple(sources)))
    storage.create(run.retry(len(before) + 1), artifacts.encode_json(content))
    return True


def _transient_failures(run: Run, shard: int) -> dict[str, int]:
    """Transient reason → number of rows of the shard that failed with it."""
    statuses = ledger.read_image_stats(run, shard)["status_dict"]
    return {reason: count for reason, count in statuses.items() if is_transient(reason)}


def prepare(run: Run, retry_round: Round) -> None:
    """Take the round's rows out of the quarantine and write its list shards, unless all of them exist."""
    existing = set(storage.list_names(run.lists, ".parquet"))
    shards = range(retry_round.first, retry_round.first + retry_round.shards)
    if all(f"{shard_name(shard)}.parquet" in existing for shard in shards):
        return
    for shard, failed in _failed(run, retry_round):
        storage.replace(
            run.quarantine("images", f"{shard_name(shard)}.parquet"), quarantine_parquet(failed, retry_round.reasons)
        )
    # Write the list shards last: no image is in quarantine and in a pending shard at once.
    pending, shard = LISTS.empty_table(), retry_round.first
    for _, failed in _failed(run, retry_round):
        retried_rows = failed.filter(pc.is_in(failed["reason"], pa.array(retry_round.reasons, pa.string())))
        pending = pa.concat_tables([pending, retried_rows.select(LISTS.names)])
        while pending.num_rows >= retry_round.samples_per_shard:
            _store(run, shard, pending.slice(0, retry_round.samples_per_shard))
            pending, shard = pending.slice(retry_round.samples_per_shard), shard + 1
    if pending.num_rows:
        _store(run, shard, pending)


def _failed(run: Run, retry_round: Round) -> Iterator[tuple[int, pa.Table]]:
    """The failed rows of each source shard of the round, in order, a few shards ahead."""

    def read(shard: int) -> pa.Table:
        columns = [*LISTS.names, "key", *ORIGIN.names]
        return failed_rows(run, shard, ledger.read_image_stats(run, shard), columns)

    return zip(retry_round.sources, map_ordered(read, retry_round.sources), strict=True)


def _store(run: Run, shard: int, rows: pa.Table) -> None:
    storage.create(run.list_shard(shard), artifacts.encode_parquet(rows.cast(LISTS).combine_chunks()))
