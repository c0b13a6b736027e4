"""How far a run is, from the names of its markers alone: one listing a folder, also while another machine runs it."""

import json
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import ledger


def status(run: Run) -> dict[str, Any]:
    """Shards planned, fetched, captioned by each captioner, and in the dataset; trained and evaluated models."""
    planned = json.loads(storage.read_bytes(run.plan))["shards"] if storage.exists(run.plan) else None
    fetched = ledger.fetched_shards(run)
    return {
        "shards": planned,
        "fetched": len(fetched),
        "captioned": {name: len(ledger.captioned_shards(run, name)) for name in ledger.captioners(run)},
        "dataset": storage.exists(run.dataset),
        "trained": storage.list_names(storage.join(run.url, "train")),
        "evaluated": [name.removesuffix(".json") for name in storage.list_names(storage.join(run.url, "eval"))],
    }


def as_lines(found: dict[str, Any]) -> list[str]:
    """`status` for people."""
    planned = found["shards"]
    total = "?" if planned is None else planned
    lines = ["lists        not cut into shards yet" if planned is None else f"lists        cut into {planned} shards"]
    lines.append(f"download     {found['fetched']} of {total} shards")
    lines += [f"recaption    {name}: {done} of {found['fetched']} shards" for name, done in found["captioned"].items()]
    lines.append(f"dataset      {'complete' if found['dataset'] else 'not complete'}")
    lines += [f"train        {name}{', evaluated' if name in found['evaluated'] else ''}" for name in found["trained"]]
    return lines
