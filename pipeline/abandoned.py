"""What a rewrite that was given up left in the dataset's folders: removed once nobody can be at work on it."""

import re
import time
from collections.abc import Iterable, Iterator

from lotlip_data.manifests import storage
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import dataset

STILL_SECONDS = 86_400
"""A rewrite commits a shard every few minutes: where none has come for a day, there is no rewrite."""

_OURS = re.compile(
    r"shards/(train|validation)-\d{5,}(-\d{2,})?(-[0-9a-f]{6}|-[0-9a-f]{12})?\.(tar|parquet)"
    r"|shards/\.done/\d{5,}-[0-9a-f]{12}\.json"
    r"|quarantine/shard/\d{5,}-[0-9a-f]{12}\.parquet"
)


def existing(run: Run) -> Iterator[str]:
    """All that is in the folders of the dataset, relative to the run. Three listings."""
    for folder in ("shards", f"shards/{dataset.MARKERS}", "quarantine/shard"):
        yield from (f"{folder}/{name}" for name in storage.list_names(storage.join(run.url, folder)))


def remove_abandoned(run: Run, named: Iterable[str], now: float | None = None) -> int:
    """Remove objects that look like those of a dataset and are not among the `named` ones of this one; how many.

    To be called when dataset.json is up to date and what it replaced is gone. None is removed before the last of them
    has lain still for STILL_SECONDS, since another driver, with other settings, may be writing them. now: Unix time,
    for tests.
    """
    left = set(filter(_OURS.fullmatch, existing(run)))
    left.difference_update(named)
    by_folder: dict[str, set[str]] = {}
    for name in left:
        folder, _, own = name.rpartition("/")
        by_folder.setdefault(folder, set()).add(own)
    changes = [storage.last_change(storage.join(run.url, folder), few) for folder, few in by_folder.items()]
    if max((change for change in changes if change), default=0.0) > (now or time.time()) - STILL_SECONDS:
        return 0
    for name in sorted(left, key=lambda name: f"/{dataset.MARKERS}/" not in name):  # a marker vouches for its files
        storage.remove(storage.join(run.url, name))
    return len(left)
