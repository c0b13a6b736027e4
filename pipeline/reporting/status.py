"""The progress of a run, read from object names: a few listings, also while other machines work on the run."""

import time
from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats import score_file
from lotlip_data.manifests.formats.dataset_index import done_shards
from lotlip_data.manifests.run_layout import TRAINING_DONE, Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.downloading import retry
from lotlip_data.pipeline.downloading.stage import read_summary
from lotlip_data.pipeline.reporting.training_status import TrainingStatus, training_status
from lotlip_data.pipeline.url_lists.partition import Partition, load_partition

WINDOW_SECONDS = 600
"""Length of the window over which rates are averaged. A stage without a result in it is not in progress."""


class DownloadStatus(TypedDict):
    """Progress of the download, as `status --json` prints it."""

    urls: int
    """Rows of all shards, those of retries included."""
    estimated: bool
    """Whether `urls` is an estimate: a tar has to be read to know its rows."""
    unit: str
    """What the rows are: `URL`, or `image` where images exist that are not downloaded."""
    tried: int
    """Rows of the downloaded shards."""
    failed: int
    """Rows of the downloaded shards without an image, except those that a retry round tries again."""
    left: int
    images_per_s: float
    """URLs tried per second, averaged over the last WINDOW_SECONDS."""
    seconds_left: int | None
    """Estimated time to completion; None while nothing is downloaded."""
    stopped: str | None
    """Why the last call of `download` left shards pending; None if it did not, or if shards were committed since."""


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
    stopped: str | None
    """Why the last call of `recaption` gave the captioner up, such as an engine that does not start; None if it did
    not, or if captions were committed since."""


class ScorerStatus(TypedDict):
    """Progress of one scorer, as `status --json` prints it."""

    done: int
    """Images scored, or without scores for a reason."""
    failed: int
    """Images without scores."""
    left: int
    images_per_s: float
    """Averaged over the last WINDOW_SECONDS."""
    seconds_left: int | None
    """Estimated time to completion; None while nothing is scored."""


class BuildStatus(TypedDict):
    """Progress of a dataset that is not published yet, as `status --json` prints it."""

    done: int
    """Shards that are written."""
    left: int
    """Shards that are not, those that are still to be downloaded included."""
    running: bool
    """Whether a shard was written in the last WINDOW_SECONDS, and `shard` has not stopped since."""
    stopped: str | None
    """Why the last call of `shard` did not complete the dataset; None if it did not stop, or another call goes on."""


class Stale(TypedDict):
    """A result that was made from an earlier state of its input, as `status --json` prints it."""

    stage: str
    """`import`, `score`, `dataset`, `train` or `eval`."""
    name: str
    """The captioner, scorer or model; empty for the dataset."""
    reason: str


class RunStatus(TypedDict):
    """Progress of a run, as `status --json` prints it."""

    shards: int | None
    """Shards of the partition and of retry rounds; None before the lists are partitioned."""
    fetched: int
    """Image shards whose download is committed."""
    images: int
    """Images in these shards."""
    download: DownloadStatus | None
    """None before the lists are partitioned."""
    captioned: dict[str, int]
    """By captioner, the fetched shards whose captions are committed, and those without images."""
    captioners: dict[str, CaptionerStatus]
    dataset: bool
    """Whether dataset.json exists."""
    trained: list[str]
    """Names of the finished training runs."""
    training: list[str]
    """Names of the training runs that are in progress or were stopped."""
    trainings: dict[str, TrainingStatus]
    """Progress of the training runs in `training`."""
    evaluated: dict[str, list[str]]
    """By model, the URLs of its result files."""
    failures: NotRequired[dict[str, Any]]
    """Download failures by reason and by host, where these were requested."""
    texts: NotRequired[dict[str, list[str]]]
    """By captioner that makes several texts for each image, their names in `captioners`."""
    not_started: NotRequired[dict[str, list[str]]]
    """By stage (`import`, `recaption`, `score`, `train`), the names in the manifest without a folder in the run."""
    imported: NotRequired[list[str]]
    """The captioners whose captions come from the lists of the manifest's sources."""
    scorers: NotRequired[dict[str, ScorerStatus]]
    """The scorers that have started."""
    building: NotRequired[BuildStatus]
    """Where dataset.json does not exist, but some of its shards."""
    stale: NotRequired[list[Stale]]
    """What no longer fits its input."""
    next: NotRequired[str]
    """The next command to run."""


def get_status(run: Run, now: float | None = None, failures: bool = False) -> RunStatus:
    """Return the progress of a run.

    Args:
        run: The run. Missing files mean that a stage has not started.
        now: Unix time at which the rates are taken. Default: the current time.
        failures: Also count download failures by reason and by host, which reads one marker per fetched shard.
    """
    now = now or time.time()
    partition, rounds = load_partition(run), retry.rounds(run)
    fetched = ledger.fetched_shards(run)
    images = ledger.fetched_images(run, fetched)
    to_caption = set(ledger.shards_with_images(run))
    names = ledger.captioners(run)
    trained, unfinished, evaluated = _models(run)
    status = RunStatus(
        shards=partition.shards + sum(retry_round.shards for retry_round in rounds) if partition else None,
        fetched=len(fetched),
        images=images,
        download=_download_status(run, partition, rounds, fetched, now) if partition else None,
        captioned={name: len(fetched) - len(to_caption - set(ledger.captioned_shards(run, name))) for name in names},
        captioners={name: _captioner_status(run, name, images, now) for name in names},
        dataset=storage.exists(run.dataset),
        trained=trained,
        training=unfinished,
        trainings={name: training_status(run, name, now) for name in unfinished},
        evaluated=evaluated,
    )
    if scorers := score_file.scorers(run):
        status["scorers"] = {name: _scorer_status(run, name, images, now) for name in scorers}
    if not status["dataset"] and (building := _build_status(run, status["shards"] or len(fetched), now)):
        status["building"] = building
    if failures and partition is not None:
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


def _download_status(
    run: Run, partition: Partition, rounds: list[retry.Round], fetched: list[int], now: float
) -> DownloadStatus:
    recorded = ledger.recorded(run.image_ledger)
    records = [recorded[shard] for shard in fetched if shard in recorded]
    tried = sum(record.rows for record in records)
    failed = sum(record.failed for record in records)
    for shard in set(fetched).difference(recorded):  # killed between the marker and the entry
        marker = ledger.read_image_stats(run, shard)
        tried, failed = tried + marker["count"], failed + marker["count"] - marker["successes"]
    retried = sum(retry_round.rows for retry_round in rounds)
    committed = {shard: record.rows for shard, record in recorded.items()}
    rows = partition.rows_with(committed) + retried
    left = max(0, rows - tried)
    last = max((record.ended for record in records), default=0)
    urls_per_s, _ = rates(records, now)
    return {
        "urls": rows,
        "estimated": partition.is_estimate(committed),
        "unit": partition.unit,
        "tried": tried,
        "failed": max(0, failed - retried),
        "left": left,
        "images_per_s": round(urls_per_s, 3),
        "seconds_left": round(left / urls_per_s) if urls_per_s else None,
        "stopped": ledger.stop_of(run.stopped("download"), last) if left else None,
    }


def _build_status(run: Run, shards: int, now: float) -> BuildStatus | None:
    names = storage.list_names(run.shard_markers)
    done = len({shard for shard, _ in done_shards(run)})
    if not done:
        return None
    changed = storage.last_change(run.shard_markers, names) or 0.0
    stopped = ledger.stop_of(run.stopped("shard"), changed)
    is_running = changed > now - WINDOW_SECONDS and stopped is None
    return {"done": done, "left": max(0, shards - done), "running": is_running, "stopped": stopped}


def _captioner_status(run: Run, name: str, images: int, now: float) -> CaptionerStatus:
    records = ledger.captioned(run, name)
    done = sum(record.rows for record in records)
    failed = sum(record.failed for record in records)
    left = max(0, images - done)
    images_per_s, tokens_per_s = rates(records, now)
    last = max((record.ended for record in records), default=0)
    return {
        "done": done,
        "captioned": done - failed,
        "failed": failed,
        "left": left,
        "tokens": sum(record.tokens for record in records),
        "images_per_s": round(images_per_s, 3),
        "tokens_per_s": round(tokens_per_s, 1),
        "seconds_left": round(left / images_per_s) if images_per_s else None,
        "stopped": ledger.stop_of(run.captioner_stopped(name), last) if left else None,
    }


def _scorer_status(run: Run, name: str, images: int, now: float) -> ScorerStatus:
    scored = {int(file.partition("-")[0]) for file in storage.list_names(run.scorer(name), score_file.ENDING)}
    records = [record for shard, record in ledger.recorded(run.score_ledger(name)).items() if shard in scored]
    done = sum(record.rows for record in records)
    left = max(0, images - done)
    images_per_s, _ = rates(records, now)
    return {
        "done": done,
        "failed": sum(record.failed for record in records),
        "left": left,
        "images_per_s": round(images_per_s, 3),
        "seconds_left": round(left / images_per_s) if images_per_s else None,
    }


def rates(records: Iterable[WorkRecord], now: float, window: float = WINDOW_SECONDS) -> tuple[float, float]:
    """Return images and tokens per second, averaged over a window that ends at `now`.

    Only the time in which there was work counts: a pause between two calls does not. The work of each record counts as
    spread evenly over its duration. The time since the last result counts if it is no longer than the longest record,
    because the next result may not be due yet.
    """
    images = tokens = longest = 0.0
    spans = []
    for record in records:
        start = max(record.started, now - window)
        end = min(record.ended, now)
        if record.ended <= now - window:
            continue
        share = (end - start) / record.seconds if record.ended > start else 1.0
        images += share * record.rows
        tokens += share * record.tokens
        longest = max(longest, record.seconds)
        spans.append((start, end))
    last = max((end for _, end in spans), default=now)
    if now - last <= longest:
        spans.append((last, now))
    seconds = max(1.0, covered(spans))
    return images / seconds, tokens / seconds


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The time that lies in at least one of the spans."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
