"""The progress of a run, read from object names alone: a few listings, also while other machines work on the run."""

import time
from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import TRAINING_DONE, Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.downloading import retry
from lotlip_data.pipeline.downloading.failures import format_text as format_failures
from lotlip_data.pipeline.downloading.stage import read_summary
from lotlip_data.pipeline.url_lists.partition import load_partition

WINDOW_SECONDS = 600
"""Length of the window over which rates are averaged."""


class CaptionerStatus(TypedDict):
    """Progress of one captioner, as `status --json` prints it."""

    done: int
    """Images captioned or failed."""
    captioned: int
    failed: int
    left: int
    """Fetched images that are neither captioned nor failed."""
    tokens: int
    images_per_s: float
    """Averaged over the last WINDOW_SECONDS, as is `tokens_per_s`."""
    tokens_per_s: float
    seconds_left: int | None
    """Estimated time to completion; None while nothing is captioned."""


class RunStatus(TypedDict):
    """Progress of a run, as `status --json` prints it."""

    shards: int | None
    """Shards of the partition and of retry rounds; None before the lists are partitioned."""
    fetched: int
    """Image shards whose download is committed."""
    images: int
    """Images in these shards."""
    captioned: dict[str, int]
    """By captioner, the fetched shards whose captions are committed, and those without images."""
    captioners: dict[str, CaptionerStatus]
    dataset: bool
    """Whether dataset.json exists."""
    trained: list[str]
    """Names of the finished training runs."""
    training: list[str]
    """Names of the training runs that are in progress or were stopped."""
    evaluated: dict[str, list[str]]
    """By model, the URLs of its result files."""
    failures: NotRequired[dict[str, Any]]
    """Download failures by reason and by host, where these were requested."""


def get_status(run: Run, now: float | None = None, failures: bool = False) -> RunStatus:
    """Return the progress of a run.

    Args:
        run: The run. Missing files mean that a stage has not started.
        now: Unix time at which the rates are taken. Default: the current time.
        failures: Also count download failures by reason and by host, which reads one marker per fetched shard.
    """
    planned = _planned_shards(run)
    fetched = ledger.fetched_shards(run)
    images = ledger.fetched_images(run, fetched)
    to_caption = set(ledger.shards_with_images(run))
    names = ledger.captioners(run)
    trained, unfinished, evaluated = _models(run)
    status = RunStatus(
        shards=planned,
        fetched=len(fetched),
        images=images,
        captioned={name: len(fetched) - len(to_caption - set(ledger.captioned_shards(run, name))) for name in names},
        captioners={name: _captioner_status(run, name, images, now or time.time()) for name in names},
        dataset=storage.exists(run.dataset),
        trained=trained,
        training=unfinished,
        evaluated=evaluated,
    )
    if failures and planned is not None:
        status["failures"] = read_summary(run).failures.to_dict()
    return status


def _models(run: Run) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Return finished training runs, unfinished ones, and the result files of each evaluated model.

    Result files are those of the run's own evaluation and those that `eval` wrote beside the model, in that order.
    """
    names = storage.list_names(run.trainings)
    files = {name: storage.list_names(run.train(name), ".json") for name in names}
    own = [name.removesuffix(".json") for name in storage.list_names(run.evaluations, ".json")]
    evaluated = {name: [run.evaluation(name)] for name in own}
    for name in names:
        beside_model = [storage.join(run.train(name), file) for file in files[name] if file.startswith("eval")]
        if beside_model:
            evaluated[name] = evaluated.get(name, []) + beside_model
    return (
        [name for name in names if TRAINING_DONE in files[name]],
        [name for name in names if TRAINING_DONE not in files[name]],
        {name: evaluated[name] for name in sorted(evaluated)},
    )


def _planned_shards(run: Run) -> int | None:
    """Return the number of shards of the partition and of retry rounds, or None before the lists are partitioned."""
    partition = load_partition(run)
    if partition is None:
        return None
    return partition.shards + sum(retry_round.shards for retry_round in retry.rounds(run))


def _captioner_status(run: Run, name: str, images: int, now: float) -> CaptionerStatus:
    records = ledger.captioned(run, name)
    done = sum(record.rows for record in records)
    failed = sum(record.failed for record in records)
    left = max(0, images - done)
    images_per_s, tokens_per_s = rates(records, now)
    return {
        "done": done,
        "captioned": done - failed,
        "failed": failed,
        "left": left,
        "tokens": sum(record.tokens for record in records),
        "images_per_s": round(images_per_s, 3),
        "tokens_per_s": round(tokens_per_s, 1),
        "seconds_left": round(left / images_per_s) if images_per_s else None,
    }


def rates(records: Iterable[WorkRecord], now: float, window: float = WINDOW_SECONDS) -> tuple[float, float]:
    """Return images and tokens per second, averaged over a window that ends at `now`.

    The window starts `window` seconds before `now`, or at the first work within these seconds. The work of each record
    counts as spread evenly over its duration.
    """
    images = tokens = 0.0
    first_start = now
    for record in records:
        start = max(record.started, now - window)
        if record.ended <= now - window:
            continue
        share = (min(record.ended, now) - start) / record.seconds if record.ended > start else 1.0
        images += share * record.rows
        tokens += share * record.tokens
        first_start = min(first_start, start)
    seconds = max(1.0, now - first_start)
    return images / seconds, tokens / seconds


def format_text(status: RunStatus) -> list[str]:
    """Return the lines that `status` prints, from the result of `get_status`."""
    shards = status["shards"]
    total = "?" if shards is None else shards
    lines = ["lists        not partitioned yet" if shards is None else f"lists        partitioned into {shards} shards"]
    lines.append(f"download     {status['fetched']} of {total} shards, {status['images']} images")
    lines += format_failures(status["failures"]) if "failures" in status else []
    for name, captioner in status["captioners"].items():
        done = f"{status['captioned'][name]} of {status['fetched']} shards"
        failed = f", {captioner['failed']} failed" if captioner["failed"] else ""
        images = f"{captioner['captioned']} images captioned{failed}, {captioner['left']} remaining"
        lines.append(f"recaption    {name}: {done}, {images}{_format_rates(captioner)}")
    lines.append(f"dataset      {'complete' if status['dataset'] else 'not complete'}")
    for name in status["trained"]:
        lines.append(f"train        {name}{', evaluated' if name in status['evaluated'] else ''}")
    lines += [f"train        {name}: not finished" for name in status["training"]]
    return lines


def _format_rates(captioner: CaptionerStatus) -> str:
    if not captioner["left"] or captioner["seconds_left"] is None:
        return ""
    minutes, seconds = divmod(captioner["seconds_left"], 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"; {captioner['images_per_s']:.1f} images/s, {captioner['tokens_per_s']:.0f} tokens/s, "
        f"ETA {hours}:{minutes:02d}:{seconds:02d}"
    )
