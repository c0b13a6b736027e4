"""What a run still has to download, for stages that follow the download."""

from dataclasses import dataclass

from lotlip_data.manifests import wording
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.ledger import fetched_shards
from lotlip_data.pipeline.downloading import retry
from lotlip_data.pipeline.url_lists.partition import load_partition


@dataclass(frozen=True)
class Remaining:
    """The shards of a run, those of retries included, and how many of them are not downloaded."""

    left: int
    shards: int
    samples_per_shard: int


def remaining(run: Run) -> Remaining | None:
    """What is left to download; None if the lists are not partitioned yet. Three listings at most."""
    if (partition := load_partition(run)) is None:
        return None
    shards = partition.shards + sum(retry_round.shards for retry_round in retry.rounds(run))
    left = shards - len(set(fetched_shards(run)).intersection(range(shards)))
    return Remaining(left, shards, partition.samples_per_shard)


def missing_images(run: Run) -> str:
    """What the download has not committed, such as `3 of 12 shards to be downloaded`; empty if it is complete."""
    if (rest := remaining(run)) is None:
        return "the lists to be read"
    return f"{rest.left:,} of {wording.count(rest.shards, 'shard')} to be downloaded" if rest.left else ""
