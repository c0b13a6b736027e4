"""How far a run is, from the names of its objects alone: a few listings, also while another machine runs it."""

import time
from collections.abc import Iterable
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.downloading import retry
from lotlip_data.pipeline.downloading.failures import format_text as failures_as_lines
from lotlip_data.pipeline.downloading.stage import read_summary
from lotlip_data.pipeline.url_lists.partition import load_partition

WINDOW = 600
"""Seconds that the rates are taken over."""


def status(run: Run, now: float | None = None, failures: bool = False) -> dict[str, Any]:
    """Shards planned, fetched, captioned by each captioner, and in the dataset; trained and evaluated models.

    `captioners` has, for each, images done (captioned or failed) and left, images and tokens per second over the last
    WINDOW seconds, and from these the seconds left (None where nothing moves). now: Unix time, for tests. `failures`:
    what could not be fetched by reason and by host as well, for which every shard's counts are read.
    """
    planned = _planned(run)
    fetched = ledger.fetched_shards(run)
    images = ledger.fetched_images(run, fetched)
    names = ledger.captioners(run)
    found = {
        "shards": planned,
        "fetched": len(fetched),
        "images": images,
        "captioned": {name: len(set(fetched).intersection(ledger.captioned_shards(run, name))) for name in names},
        "captioners": {name: _captioner(run, name, images, now or time.time()) for name in names},
        "dataset": storage.exists(run.dataset),
        **_trained(run),
    }
    if failures and planned is not None:
        found["failures"] = read_summary(run).failures.to_dict()
    return found


def _trained(run: Run) -> dict[str, Any]:
    """Names of the finished trainings, of those under way or given up, and of what is evaluated, with its results.

    Results are those of the run's own evaluation, and what `eval` wrote beside the model; not their tables.
    """
    names = storage.list_names(storage.join(run.url, "train"))
    inside = {name: storage.list_names(run.train(name), ".json") for name in names}
    own = [name.removesuffix(".json") for name in storage.list_names(storage.join(run.url, "eval"), ".json")]
    found = {name: [run.evaluation(name)] for name in own}
    for name, files in inside.items():
        beside = [storage.join(run.train(name), file) for file in files if file.startswith("eval")]
        if beside:
            found[name] = found.get(name, []) + beside
    return {
        "trained": [name for name in names if "done.json" in inside[name]],
        "training": [name for name in names if "done.json" not in inside[name]],
        "evaluated": {name: found[name] for name in sorted(found)},
    }


def _planned(run: Run) -> int | None:
    """Shards of the plan and of retries; None where nothing is planned yet."""
    plan = load_partition(run)
    return None if plan is None else plan.shards + sum(one.shards for one in retry.rounds(run))


def _captioner(run: Run, name: str, images: int, now: float) -> dict[str, Any]:
    tallies = ledger.captioned(run, name)
    done = sum(tally.rows for tally in tallies)
    images_per_s, tokens_per_s = rates(tallies, now)
    failed = sum(tally.failed for tally in tallies)
    left = max(0, images - done)
    return {
        "done": done,
        "captioned": done - failed,
        "failed": failed,
        "left": left,
        "tokens": sum(tally.tokens for tally in tallies),
        "images_per_s": round(images_per_s, 3),
        "tokens_per_s": round(tokens_per_s, 1),
        "seconds_left": round(left / images_per_s) if images_per_s else None,
    }


def rates(tallies: Iterable[WorkRecord], now: float, window: float = WINDOW) -> tuple[float, float]:
    """Images and tokens per second over the `window` seconds before `now`, or since the first work in it.

    The work of each tally is spread evenly over its time.
    """
    images = tokens = 0.0
    first = now
    for tally in tallies:
        begun = max(tally.started, now - window)
        if tally.ended <= now - window:
            continue
        share = (min(tally.ended, now) - begun) / tally.seconds if tally.ended > begun else 1.0
        images += share * tally.rows
        tokens += share * tally.tokens
        first = min(first, begun)
    seconds = max(1.0, now - first)
    return images / seconds, tokens / seconds


def format_text(found: dict[str, Any]) -> list[str]:
    """`status` for people."""
    planned = found["shards"]
    total = "?" if planned is None else planned
    lines = ["lists        not cut into shards yet" if planned is None else f"lists        cut into {planned} shards"]
    lines.append(f"download     {found['fetched']} of {total} shards, {found['images']} images")
    lines += failures_as_lines(found["failures"]) if "failures" in found else []
    for name, one in found["captioners"].items():
        shards = f"{found['captioned'][name]} of {found['fetched']} shards"
        failed = f", {one['failed']} failed" if one["failed"] else ""
        images = f"{one['captioned']} images captioned{failed}, {one['left']} left"
        lines.append(f"recaption    {name}: {shards}, {images}{_pace(one)}")
    lines.append(f"dataset      {'complete' if found['dataset'] else 'not complete'}")
    lines += [f"train        {name}{', evaluated' if name in found['evaluated'] else ''}" for name in found["trained"]]
    lines += [f"train        {name}: not finished" for name in found["training"]]
    return lines


def _pace(one: dict[str, Any]) -> str:
    if not one["left"] or one["seconds_left"] is None:
        return ""
    hours, seconds = divmod(one["seconds_left"], 3600)
    minutes, seconds = divmod(seconds, 60)
    return (
        f"; {one['images_per_s']:.1f} images/s, {one['tokens_per_s']:.0f} tokens/s, "
        f"{hours}:{minutes:02d}:{seconds:02d} to go"
    )
