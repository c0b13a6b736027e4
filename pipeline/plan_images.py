"""How many images a run will have, and of how many bytes: as those that it has, of rows that it has not fetched yet."""

from lotlip_data.manifests import storage
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import ledger, retry
from lotlip_data.pipeline.description import head
from lotlip_data.pipeline.partition import load_plan
from lotlip_data.pipeline.plan_lists import evenly
from lotlip_data.pipeline.plan_storage import Stored

LOOKED_AT = 20
"""Fetched shards whose sizes are asked for, at most, evenly chosen among all."""


def images_of(run: Run) -> tuple[int, str] | None:
    """Images, and what their number assumes: nothing once all is fetched. None before the lists are cut into shards.

    images = fetched images + rows left × fetched images / rows of the fetched shards
    """
    plan = load_plan(run)
    if plan is None:
        return None
    sizes = _sizes(0, plan.shards, plan.images, plan.samples_per_shard)
    for one in retry.rounds(run):
        sizes |= _sizes(one.first, one.shards, one.rows, one.samples_per_shard)
    fetched = ledger.fetched_shards(run)
    images = ledger.fetched_images(run, fetched)
    tried = sum(sizes.get(shard, 0) for shard in fetched)
    left = sum(sizes.values()) - tried
    if not left:
        return images, ""
    share = images / tried if tried else 1.0
    because = "as of those that are" if tried else "assumed: nothing is fetched"
    assumed = f"{left:,} rows are not fetched yet; {share:.1%} of them give an image, {because}"
    return images + round(left * share), assumed


def _sizes(first: int, shards: int, rows: int, full: int) -> dict[int, int]:
    """Rows of each shard: all are full but the last."""
    return {first + number: min(full, rows - number * full) for number in range(shards)}


def stored_by(run: Run) -> Stored | None:
    """What its images and its dataset take, the dataset by its own description. None where no image is fetched."""
    found = images_of(run)
    sizes = [size for shard in evenly(ledger.fetched_shards(run), LOOKED_AT) if (size := _size_of(run, shard))]
    images = sum(count for count, _ in sizes)
    if found is None or not images:
        return None
    described = head(run) if storage.exists(run.dataset) else {"fetched": 0}
    dataset = described["bytes"] / described["fetched"] if described["fetched"] else None
    return Stored(found[0], sum(size for _, size in sizes) / images, len(sizes), dataset)


def _size_of(run: Run, shard: int) -> tuple[int, int] | None:
    """Images and bytes of a fetched shard; None where a file of it is missing, or its storage tells no sizes."""
    marker = ledger.read_image_stats(run, shard)
    tar, rows = (storage.size(storage.join(run.images, marker[kind])) for kind in ("tar", "parquet"))
    return None if tar is None or rows is None else (marker["successes"], tar + rows)
