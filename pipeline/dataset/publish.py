"""Publishes the dataset: replaces dataset.json in one step, writes its views, and removes files it no longer names.

dataset.json itself lists the files of earlier versions (`replaced`). So if a process is killed, the next one removes
what is left of them, and files that another driver is writing are never removed.

An abandoned rewrite leaves files that no dataset.json has named. `remove_orphans` removes them once no process can be
working on them.
"""

import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.formats.dataset_index import CARD, CROISSANT, REPLACED, ShardRecord
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.dataset import croissant, dataset_card, metadata
from lotlip_data.pipeline.dataset.metadata import Description, Recipe

logger = logging.getLogger(__name__)

STILL_SECONDS = 86_400
"""A rewrite commits a shard every few minutes, so if nothing has been committed for a day, there is no rewrite."""

_SHARD_FILE = re.compile(r"(train|validation)-\d{5,}(-\d{2,})?(-[0-9a-f]{6}|-[0-9a-f]{12})?\.(tar|parquet)")
_MARKER = re.compile(r"\d{5,}-[0-9a-f]{12}\.json")
_DROPPED_LIST = re.compile(r"\d{5,}-[0-9a-f]{12}\.parquet")


def publish(
    run: Run, manifest: Manifest, recipe: Recipe, records: Iterable[ShardRecord], *, chosen: bool = False
) -> bool:
    """Write dataset.json and its views, and remove the files that the earlier version named.

    Args:
        run: The run.
        manifest: The manifest of the run.
        recipe: The recipe of the dataset.
        records: The markers of all shards, in order; read once.
        chosen: Whether the command named the captioners, and other ones than the default.

    Returns:
        Whether anything was written: False if dataset.json and its views are up to date.
    """
    with scratch_folder("publish") as folder:
        description, index = metadata.write_index(folder, manifest, recipe, records, chosen=chosen)
        replaced = metadata.replaced_if_unchanged(run, index)
        if changed := replaced is None:
            replaced = _replaced_files(run, index)
            metadata.finish_index(index, replaced)
            storage.replace_from_file(run.dataset, str(index))
        stale = stale_views(run, description)
        for name in stale:
            storage.replace(run.dataset_file(name), VIEWS[name](description))
        _declare_columns(run, description)
        _remove(run, set(replaced).intersection(existing(run)) if replaced else ())
        if removed := remove_orphans(run, _paths_in(run, index)):
            logger.info(f"removed {removed} files of an abandoned rewrite")
    return changed or bool(stale)


def _declare_columns(run: Run, description: Description) -> None:
    """Complete the card of an earlier release."""
    content = dataset_card.text_of(storage.read_bytes(run.dataset_file(CARD)), "surrogateescape")
    if (complete := dataset_card.declaring_columns(content, description)) != content:
        storage.replace(run.dataset_file(CARD), complete.encode("utf-8", "surrogateescape"))


def _replaced_files(run: Run, index: Path) -> list[str]:
    """The existing files that the run's dataset.json names and the new `index` does not."""
    if not storage.exists(run.dataset):
        return []
    content = dataset_index.read_index(run)
    paths = {*paths_of(run, dataset_index.read_records(run, content)), *content[REPLACED]}
    paths.difference_update(_paths_in(run, index))
    return sorted(paths.intersection(existing(run)))


def _paths_in(run: Run, index: Path) -> Iterator[str]:
    """The objects that a local dataset.json names, relative to the run."""
    for entry in dataset_index.iter_entries(index):
        if isinstance(entry, str):  # an entry of `replaced`
            yield entry
        elif "fingerprint" in entry:
            yield run.relative(dataset_index.marker(run, entry["shard"], entry["fingerprint"]))
            if entry["dropped_list"]:
                yield run.relative(run.quarantine(entry["dropped_list"]))
        else:
            yield from (run.relative(run.dataset_file(entry[kind]["name"])) for kind in ("tar", "parquet"))


def paths_of(run: Run, records: Iterable[ShardRecord]) -> list[str]:
    """The objects of these shards, relative to the run."""
    urls = []
    for record in records:
        urls.append(dataset_index.marker(run, record.shard, record.fingerprint))
        urls += [run.dataset_file(file.name) for file in record.files]
        if record.dropped_list:
            urls.append(run.quarantine(record.dropped_list))
    return [run.relative(url) for url in urls]


def encode_view(content: Mapping[str, Any]) -> bytes:
    """Encode what describes a dataset, for people and other tools, as JSON."""
    text = io.StringIO()
    json.dump(content, text, indent=1, ensure_ascii=False)  # `dumps` would hold all pieces of the text at once
    return f"{text.getvalue()}\n".encode()


VIEWS: dict[str, Callable[[Description], bytes]] = {
    CARD: lambda description: dataset_card.card(description).encode(),
    CROISSANT: lambda description: encode_view(croissant.croissant(description)),
}
"""The files that follow from dataset.json, and what writes them."""


def stale_views(run: Run, description: Description) -> list[str]:
    """The names of the views that are missing or of another dataset.

    What machines read must be equal. A card is up to date if it has the stamp of the dataset: people may add to it.
    """
    return [name for name, render in VIEWS.items() if not _is_current(run, name, description, render)]


def _is_current(run: Run, name: str, description: Description, render: Callable[[Description], bytes]) -> bool:
    try:
        content = storage.read_bytes(run.dataset_file(name))
    except FileNotFoundError:
        return False
    if name == CARD:
        return dataset_card.stamp(description).encode() in content
    return content == render(description)


def published(run: Run) -> dict[str, Any] | None:
    """dataset.json without its lists, or None if there is none. Raises DatasetError if it is damaged."""
    return dataset_index.read_dataset_summary(run) if storage.exists(run.dataset) else None


def _folders(run: Run) -> dict[str, re.Pattern[str]]:
    """The folders of the dataset, and what the names of its files in each look like."""
    return {run.shards: _SHARD_FILE, run.shard_markers: _MARKER, run.quarantine("shard"): _DROPPED_LIST}


def existing(run: Run) -> Iterator[str]:
    """The objects in the folders of the dataset, relative to the run. Three listings."""
    for folder in _folders(run):
        yield from (run.relative(storage.join(folder, name)) for name in storage.list_names(folder))


def remove_orphans(run: Run, named: Iterable[str], now: float | None = None) -> int:
    """Remove the files of abandoned rewrites: named like files of the dataset, but not part of it.

    Nothing is removed unless all of them have been unchanged for STILL_SECONDS, because another driver with other
    settings may be writing them. To be called when dataset.json is up to date and the files it replaced are gone.

    Args:
        run: The run.
        named: The objects that dataset.json names, relative to the run.
        now: The current Unix time, for tests.

    Returns:
        The number of files that were removed.
    """
    orphans = {
        run.relative(storage.join(folder, name))
        for folder, pattern in _folders(run).items()
        for name in storage.list_names(folder)
        if pattern.fullmatch(name)
    }
    orphans.difference_update(named)
    names_by_folder: dict[str, set[str]] = {}
    for path in orphans:
        folder, _, name = path.rpartition("/")
        names_by_folder.setdefault(folder, set()).add(name)
    changes = [storage.last_change(run.at_path(folder), names) for folder, names in names_by_folder.items()]
    if max((change for change in changes if change), default=0.0) > (now or time.time()) - STILL_SECONDS:
        return 0
    _remove(run, orphans)
    return len(orphans)


def _remove(run: Run, paths: Iterable[str]) -> None:
    """Remove objects, by their paths relative to the run. Markers go first: they vouch for the other files."""
    markers = run.relative(run.shard_markers) + "/"
    for path in sorted(paths, key=lambda path: (not path.startswith(markers), path)):
        storage.remove(run.at_path(path))
