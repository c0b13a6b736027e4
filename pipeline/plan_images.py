"""How many images a run will have: those that it has, and its share of the rows that it has not fetched yet."""

from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import ledger, retry
from lotlip_data.pipeline.partition import load_plan


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
