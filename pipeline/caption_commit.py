"""What a committed unit comes to, and what follows the commit: its quarantine, its line in the ledger."""

import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.layout import Run, shard_name
from lotlip_data.pipeline import ledger, parquet_object
from lotlip_data.pipeline.meter import Spent

NO_TIME = Spent()


@dataclass(frozen=True)
class UnitResult:
    """A unit's `rows`, of them `rejected` with a reason; `captioned` by this call; `won`: its commit was the first."""

    shard: int
    rows: int
    captioned: int
    rejected: int
    won: bool


def finish(run: Run, captioner: str, shard: int, started: int | None = None, spent: Spent = NO_TIME) -> ledger.Tally:
    """After the commit of a shard's captions, whoever made it. Doing it again is harmless.

    started: of the work, in Unix time; None where it is not known. spent: NO_TIME where no actor worked or nobody
    knows. Returns what the shard holds.
    """
    url = run.caption_shard(captioner, shard)
    table = parquet_object.read(url, f"Remove {url}; its images are captioned again.")
    rejected = table.filter(pc.is_valid(table["error"]))
    listed = run.quarantine("captions", captioner, f"{shard_name(shard)}.parquet")
    if rejected.num_rows:
        listing = pa.BufferOutputStream()
        pq.write_table(rejected, listing, compression="zstd")
        storage.replace(listed, listing.getvalue().to_pybytes())
    else:
        storage.remove(listed)  # of captions that were removed since
    times = (0, 0) if started is None else (started, round(time.time()))
    tokens = pc.sum(table["tokens"]).as_py() or 0
    counted = ledger.Tally(table.num_rows, rejected.num_rows, tokens, *times, *spent.milliseconds)
    ledger.record(run.caption_ledger(captioner), shard, counted)
    storage.remove(run.caption_parts(captioner, shard))
    return counted


def complete(run: Run, captioner: str, done: tuple[int, ...]) -> None:
    """Do what follows a commit for shards whose process was killed right after it.

    Of shards whose captions have been removed it is undone, so that they are counted once when they come again.
    """
    ledger.forget_removed(run, captioner)
    recorded = ledger.recorded(run.caption_ledger(captioner))
    for shard in done:
        if shard not in recorded:
            finish(run, captioner, shard)
