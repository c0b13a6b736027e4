"""dataset.json and its views: replaced at once; what it names no more is removed afterwards, killed or not.

Which objects have been replaced is written in dataset.json itself, so whoever comes next can remove what is left of
them, and nothing that another driver is just building is ever touched.

What a rewrite that was given up left in the dataset's folders: removed once nobody can be at work on it.
"""

import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lotlip_data.manifests import dataset_index, storage
from lotlip_data.manifests.dataset_index import MARKERS, ShardRecord
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.dataset import croissant, dataset_card, metadata
from lotlip_data.pipeline.dataset.metadata import Description, Recipe

logger = logging.getLogger(__name__)

_SHARDS, _QUARANTINE = "shards", "quarantine"


def publish(
    run: Run,
    manifest: Manifest,
    recipe: Recipe,
    records: Iterable[ShardRecord],
) -> bool:
    """Write dataset.json and its views; False where they say the same already. Removes what was replaced before."""
    with scratch_folder("publish") as folder:
        described, body = metadata.write(folder, manifest, recipe, records)
        replaced = metadata.replaced_beside(run, body)
        if changed := replaced is None:
            replaced = _replaced(run, body)
            metadata.finish(body, replaced)
            storage.replace_from_file(run.dataset, str(body))
        stale = stale_views(run, described)
        for name in stale:
            storage.replace(storage.join(run.shards, name), VIEWS[name](described))
        _remove(run, replaced)
        if removed := remove_orphans(run, _named(body)):
            logger.info(f"removed {removed} files of a rewrite that was given up")
    return changed or bool(stale)


def _replaced(run: Run, body: Path) -> list[str]:
    """What the dataset.json that is there names, and the new one does not: of that, what is still there."""
    if not storage.exists(run.dataset):
        return []
    held = dataset_index.read_index(run)
    before = {*names(dataset_index.read_records(held)), *held["replaced"]}
    before.difference_update(_named(body))
    return sorted(before.intersection(existing(run)))


def _named(body: Path) -> Iterator[str]:
    """Every object that a dataset.json in the making names, relative to the run."""
    for entry in dataset_index.entries(body):
        if isinstance(entry, str):  # of `replaced`
            yield entry
        elif "fingerprint" in entry:
            yield f"{_SHARDS}/{MARKERS}/{dataset_index.marker_name(entry['shard'], entry['fingerprint'])}"
            if entry["dropped_list"]:
                yield f"{_QUARANTINE}/{entry['dropped_list']}"
        else:
            yield from (f"{_SHARDS}/{entry[kind]['name']}" for kind in ("tar", "parquet"))


def stale_views(run: Run, described: Description) -> list[str]:
    """The files that are missing, or of another dataset. What machines read must be equal; people may add to a card."""
    found = []
    for name, make in VIEWS.items():
        try:
            held = storage.read_bytes(storage.join(run.shards, name))
        except FileNotFoundError:
            found.append(name)
            continue
        fits = dataset_card.stamp(described).encode() in held if name == dataset_index.CARD else held == make(described)
        if not fits:
            found.append(name)
    return found


def published(run: Run) -> dict[str, Any] | None:
    """What dataset.json says of the whole; None where there is none. Raises DatasetError as `dataset.read` does."""
    return dataset_index.read_dataset_summary(run) if storage.exists(run.dataset) else None


def names(records: Iterable[ShardRecord]) -> list[str]:
    """Every object of these shards, relative to the run: markers first, since they vouch for the others."""
    found = list(records)
    lists = [record.dropped_list for record in found if record.dropped_list]
    return [
        *(f"{_SHARDS}/{MARKERS}/{record.marker}" for record in found),
        *(f"{_SHARDS}/{file.name}" for record in found for file in record.files),
        *(f"{_QUARANTINE}/{name}" for name in lists),
    ]


def _remove(run: Run, replaced: list[str]) -> None:
    if not replaced:
        return
    there = set(existing(run))
    left = [name for name in replaced if name in there]
    # A marker that outlived its files would vouch for nothing, so markers go first.
    for name in sorted(left, key=lambda name: f"/{MARKERS}/" not in name):
        storage.remove(storage.join(run.url, name))


def _json(content: dict[str, Any]) -> bytes:
    text = io.StringIO()
    json.dump(content, text, indent=1, ensure_ascii=False)  # piece by piece: `dumps` would hold all its pieces at once
    return f"{text.getvalue()}\n".encode()


VIEWS: dict[str, Callable[[Description], bytes]] = {
    dataset_index.CARD: lambda described: dataset_card.card(described).encode(),
    dataset_index.CROISSANT: lambda described: _json(croissant.croissant(described)),
}
"""Files that follow from dataset.json."""

STILL_SECONDS = 86_400
"""A rewrite commits a shard every few minutes: where none has come for a day, there is no rewrite."""

_OURS = re.compile(
    r"shards/(train|validation)-\d{5,}(-\d{2,})?(-[0-9a-f]{6}|-[0-9a-f]{12})?\.(tar|parquet)"
    r"|shards/\.done/\d{5,}-[0-9a-f]{12}\.json"
    r"|quarantine/shard/\d{5,}-[0-9a-f]{12}\.parquet"
)


def existing(run: Run) -> Iterator[str]:
    """All that is in the folders of the dataset, relative to the run. Three listings."""
    for folder in ("shards", f"shards/{dataset_index.MARKERS}", "quarantine/shard"):
        yield from (f"{folder}/{name}" for name in storage.list_names(storage.join(run.url, folder)))


def remove_orphans(run: Run, named: Iterable[str], now: float | None = None) -> int:
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
    for name in sorted(
        left, key=lambda name: f"/{dataset_index.MARKERS}/" not in name
    ):  # a marker vouches for its files
        storage.remove(storage.join(run.url, name))
    return len(left)
