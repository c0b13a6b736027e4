"""dataset.json and its views: replaced at once; what it names no more is removed afterwards, killed or not.

Which objects have been replaced is written in dataset.json itself, so whoever comes next can remove what is left of
them, and nothing that another driver is just building is ever touched.
"""

import codecs
import io
import json
from collections.abc import Iterable
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import card, croissant, dataset
from lotlip_data.pipeline.dataset import MARKERS, ShardRecord

_SHARDS, _QUARANTINE = "shards", "quarantine"


def publish(run: Run, description: dict[str, Any]) -> bool:
    """Write dataset.json and its views; False where they say the same already. Removes what was replaced before."""
    held = published(run)
    changed = held is None or _but_replaced(held) != _but_replaced(description)
    if changed:
        kept = set(names(dataset.records(description)))
        before = [*names(dataset.records(held)), *held["replaced"]] if held else []
        there = existing(run)
        held = description | {"replaced": sorted({name for name in before if name in there} - kept)}
        storage.replace(run.dataset, _json(held))
    assert held is not None
    stale = stale_views(run, held)
    for name in stale:
        storage.replace(storage.join(run.shards, name), VIEWS[name](held))
    _remove(run, held["replaced"])
    return changed or bool(stale)


def _but_replaced(description: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it. What has an entry for each shard is plain already, and not copied: it is most of the memory."""
    plain = {"inputs", *dataset.SPLITS.values()}
    return {
        name: value if name in plain else json.loads(json.dumps(value))
        for name, value in description.items()
        if name != "replaced"
    }


def stale_views(run: Run, description: dict[str, Any]) -> list[str]:
    """The files that are missing, or of another dataset. What machines read must be equal; people may add to a card."""
    found = []
    for name, make in VIEWS.items():
        try:
            held = storage.read_bytes(storage.join(run.shards, name))
        except FileNotFoundError:
            found.append(name)
            continue
        fits = card.stamp(description).encode() in held if name == dataset.CARD else held == make(description)
        if not fits:
            found.append(name)
    return found


def published(run: Run) -> dict[str, Any] | None:
    """What dataset.json says, or None where there is none. Raises DatasetError where this release cannot read it."""
    return dataset.read(run) if storage.exists(run.dataset) else None


def names(records: Iterable[ShardRecord]) -> list[str]:
    """Every object of these shards, relative to the run: markers first, since they vouch for the others."""
    found = list(records)
    lists = [record.dropped_list for record in found if record.dropped_list]
    return [
        *(f"{_SHARDS}/{MARKERS}/{record.marker}" for record in found),
        *(f"{_SHARDS}/{file.name}" for record in found for file in record.files),
        *(f"{_QUARANTINE}/{name}" for name in lists),
    ]


def existing(run: Run) -> set[str]:
    """All that is in the folders of the dataset, relative to the run. Three listings."""
    folders = (_SHARDS, f"{_SHARDS}/{MARKERS}", f"{_QUARANTINE}/shard")
    return {f"{folder}/{name}" for folder in folders for name in storage.list_names(storage.join(run.url, folder))}


def _remove(run: Run, replaced: list[str]) -> None:
    if not replaced:
        return
    there = existing(run)
    left = [name for name in replaced if name in there]
    # A marker that outlived its files would vouch for nothing, so markers go first.
    for name in sorted(left, key=lambda name: f"/{MARKERS}/" not in name):
        storage.remove(storage.join(run.url, name))


def _json(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    text = codecs.getwriter("utf-8")(buffer)
    json.dump(content, text, indent=1, ensure_ascii=False)  # piece by piece: `dumps` would hold all its pieces at once
    text.write("\n")
    return buffer.getvalue()


VIEWS = {
    dataset.CARD: lambda description: card.card(description).encode(),
    dataset.CROISSANT: lambda description: _json(croissant.croissant(description)),
}
"""Files that follow from dataset.json."""
