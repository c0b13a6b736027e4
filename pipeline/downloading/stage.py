"""The download stage: every shard of a run is one Ray task, and a bounded number of tasks runs at a time.

    lists/00017.parquet → img2dataset behind the HTTP client → images/00017-ATTEMPT.tar .parquet → 00017_stats.json
    lists/00018.json → a container of existing images, scanned → images/00018-ATTEMPT.parquet → 00018_stats.json

A shard that has its marker (`_stats.json`) is committed and is never downloaded again. Its failed images can be
downloaded later, as rows of a new shard (`retry`). `commit` describes one task, `http_client` what it may connect to.
"""

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from typing_extensions import TypeIs

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import SUCCESS
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import SHOWN_BY_BAR, Progress, Snapshot, progress_bar
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import ImageMarker, fetched_shards
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import ATTEMPTS, run_ray_tasks
from lotlip_data.pipeline.downloading import retry
from lotlip_data.pipeline.downloading.commit import DownloadTask, fetch_and_commit, finish_commit, remove_orphans
from lotlip_data.pipeline.downloading.failures import Failures, retry_condition
from lotlip_data.pipeline.existing_images.partition import ExistingImages
from lotlip_data.pipeline.url_lists.partition import Partition, load_partition
from lotlip_data.pipeline.url_lists.partition import partition as partition_lists

logger = logging.getLogger(__name__)

TaskResult = ImageMarker | dict[str, int]
"""The marker of a committed shard, or the number of failures per reason of a shard that stays pending."""


@dataclass
class DownloadSummary:
    """How much of a run is downloaded. `requested` − `fetched` − `failed` images are in pending shards."""

    partition: Partition
    rounds: list[retry.Round]
    """The rounds of retries, earliest first."""
    skipped: int = 0
    """Number of shards that were committed before this call."""
    committed: set[int] = field(default_factory=set)
    """All committed shards. Only sums of their markers are kept, since 100 million images have 10,000 markers."""
    fetched: int = 0
    """Number of images in the committed shards."""
    tried: int = 0
    """Number of rows of the committed shards."""
    container_rows: dict[int, int] = field(default_factory=dict)
    """By committed shard that is a container, its number of rows."""
    filtered: Counter[str] = field(default_factory=Counter)
    """Rows of the committed containers that the filters of their sources exclude, by rule."""
    not_drawn: int = 0
    """Rows of the committed containers outside the samples."""
    failures: Failures = field(default_factory=Failures)
    """The failures of all committed shards. An image that is retried counts once its retry has failed."""
    pending: dict[int, str] = field(default_factory=dict)
    """Reason by shard, for the shards that this call tried and did not commit."""

    @property
    def requested(self) -> int:
        """Number of images in the partition; an estimate while containers are pending."""
        return self.partition.rows_with(self.container_rows)

    @property
    def shards(self) -> int:
        """Number of shards, those of retries included."""
        return self.partition.shards + sum(retry_round.shards for retry_round in self.rounds)

    @property
    def rows(self) -> int:
        """Number of rows of all shards, those of retries included."""
        return self.requested + sum(retry_round.rows for retry_round in self.rounds)

    @property
    def failed(self) -> int:
        """Number of images that failed."""
        return sum(self.reasons.values())

    @property
    def reasons(self) -> dict[str, int]:
        """Failures by reason, the most frequent first."""
        return dict(self.failures.reasons.most_common())

    @property
    def done(self) -> int:
        """Number of shards that this call committed."""
        return len(self.committed) - self.skipped

    @property
    def nothing_to_do(self) -> bool:
        """Whether every shard was committed before this call."""
        return self.skipped == self.shards

    @property
    def failed_shards(self) -> list[str]:
        """One line per pending shard. If no shard is pending and the run has no image at all, one line that says so."""
        lines = [f"shard {shard_name(shard)}: {reason}" for shard, reason in sorted(self.pending.items())]
        if not lines and not self.fetched:
            lines.append(f"none of the {self.requested} images downloaded: {_format_counts(self.reasons)}")
        return lines

    def add(self, shard: int, marker: ImageMarker, retried: Collection[str] = ()) -> None:
        """Add a committed shard, without its failures for the reasons `retried`: another shard retries these rows."""
        self.committed.add(shard)
        self.fetched += marker["successes"]
        self.tried += marker["count"]
        if self.partition.is_container(shard):
            self.container_rows[shard] = marker["count"]
        self.filtered.update(marker.get("filtered", {}))
        self.not_drawn += marker.get("not_drawn", 0)
        self.failures.add(marker, retried)

    def to_dict(self) -> dict[str, Any]:
        """The figures of `download --json`."""
        return {
            "asked": self.requested,
            "fetched": self.fetched,
            "failed": self.failed,
            **self.failures.to_dict(),
            "retried": sum(retry_round.rows for retry_round in self.rounds),
            "shards": self.shards,
            "shards_done": self.done,
            "shards_skipped": self.skipped,
            "shards_not_done": len(self.pending),
            "containers": {
                "shards": len(self.partition.container_rows),
                "filtered": dict(self.filtered.most_common()),
                "not_drawn": self.not_drawn,
            },
            "list": {
                name: getattr(self.partition, name)
                for name in (
                    *("rows", "duplicates", "invalid", "filtered", "not_drawn"),
                    *("garbled", "not_texts", "blank", "sources"),
                )
            },
        }


def download(
    manifest: Manifest,
    run: Run,
    task: Callable[[DownloadTask], TaskResult] = fetch_and_commit,
    retry_failed: bool = False,
    accept_failures: bool = False,
) -> DownloadSummary:
    """Download, or scan, every shard that is not committed yet. Partitions first if the run has no partition.

    A shard stays pending, and the next call tries it again, if its task dies repeatedly, or if none of its images
    downloads and a failure is transient. In the latter case it is committed all the same with `accept_failures`, and
    at the last of the `shard_tries` of the download settings.

    Args:
        manifest: The manifest.
        run: The run.
        task: Downloads and commits one shard, in a Ray worker.
        retry_failed: Download the images of committed shards again that failed for transient reasons. A round of
            retries that is not complete is continued instead.
        accept_failures: Commit shards even if none of their images downloads.

    Raises:
        ListError: A list cannot be read.
        PartitionError: The lists have no usable row, or too many.
        UserError: An object of the run is damaged.
        DiskError: Images cannot be written.
    """
    partition = cut_into_shards(manifest, run)
    summary = _summarize(run, partition)
    _finish_commits(run, summary)
    if retry_failed and _open_retry_round(run, summary):
        summary = _summarize(run, partition)
        retry_round = summary.rounds[-1]
        again = wording.count(retry_round.rows, "image")
        logger.info(f"downloading {again} again, in {wording.count(retry_round.shards, 'further shard')}")
    for retry_round in summary.rounds:
        retry.prepare(run, retry_round)
    if summary.committed:
        shards = wording.count(summary.shards, "shard")
        logger.info(f"{len(summary.committed):,} of {shards} {wording.plural(summary.shards, 'is')} already downloaded")
    pending = [shard for shard in range(summary.shards) if shard not in summary.committed]
    if pending:
        storage.check_writable(run.images)
    tasks = _tasks(manifest, run, partition, pending, accept_failures)
    shards_without_images = []
    with (
        ledger.recording_stop(run.stopped("download")),
        progress_bar("download", summary.rows, partition.unit, initial=summary.tried) as bar,
    ):
        bar.note("workers are starting")
        show = partial(_show_progress, bar, summary)
        for download_task, result in run_ray_tasks(task, tasks, on_progress=show, name="download"):
            if not isinstance(result, Exception) and not _is_marker(result):
                shards_without_images.append(download_task.shard)
            _record(summary, download_task.shard, result)
            bar.set_total(summary.rows)
            _show_progress(bar, summary)
    if summary.fetched:  # a run without any image so far lacks the network or the right settings: no try counts
        token = uuid.uuid4().hex[:12]
        for shard in shards_without_images:
            ledger.note_try(run, shard, token)
    if summary.pending:
        ledger.record_stop(run.stopped("download"), "; ".join(wording.group(summary.failed_shards, shown=1)))
    remove_orphans(run, summary.committed)
    return summary


def cut_into_shards(manifest: Manifest, run: Run) -> Partition:
    """Partition the lists and the existing images, unless the run has a partition already. Raises as `download`."""
    has_images = any(source.is_images for source in manifest.sources)
    return partition_lists(manifest, run, ExistingImages if has_images else None)


def read_summary(run: Run) -> DownloadSummary:
    """How much of `run` is downloaded so far. Downloads nothing. Raises UserError if the run has no partition yet."""
    if (partition := load_partition(run)) is None:
        raise UserError(f"{run.url}: no download has started. Run `lotlip-data download MANIFEST {run.url}` first.")
    return _summarize(run, partition)


def _summarize(run: Run, partition: Partition) -> DownloadSummary:
    summary = DownloadSummary(partition, retry.rounds(run))
    retried, shards = retry.retried(summary.rounds), fetched_shards(run)
    for shard, marker in zip(shards, map_ordered(partial(ledger.read_image_stats, run), shards), strict=True):
        summary.add(shard, marker, retried.get(shard, ()))
    summary.skipped = len(shards)
    return summary


def _finish_commits(run: Run, summary: DownloadSummary) -> None:
    """Write the quarantine and the ledger entry of shards whose task was killed right after the commit."""
    records = ledger.recorded(run.image_ledger)
    quarantined = set(storage.list_names(run.quarantine("images"), ".parquet"))
    retried = retry.retried(summary.rounds)
    for shard in sorted(summary.committed):
        record = records.get(shard)
        if record is None or (record.failed and f"{shard_name(shard)}.parquet" not in quarantined):
            finish_commit(run, shard, ledger.read_image_stats(run, shard), retried.get(shard, ()))


def _open_retry_round(run: Run, summary: DownloadSummary) -> bool:
    """Start a round of retries, unless the last one is not complete. Returns whether a round was started."""
    first = summary.shards
    if any(shard not in summary.committed for shard in range(summary.partition.shards, first)):
        logger.info("resuming the previous --retry-failed download")
        return False
    if not retry.open_round(run, summary.rounds, first, summary.partition.samples_per_shard, summary.committed):
        logger.info("no image failed for a transient reason")
        return False
    return True


def _tasks(
    manifest: Manifest, run: Run, partition: Partition, shards: Iterable[int], accept_failures: bool
) -> Iterator[DownloadTask]:
    """The tasks that download `shards`."""
    tries: Counter[int] = ledger.tries(run)
    images = tuple(source for source in manifest.sources if source.is_images)
    for shard in shards:
        is_retry = shard >= partition.shards  # always accepted: its rows can be retried again in a further round
        is_last_try = tries[shard] + 1 >= manifest.download.shard_tries
        accept = accept_failures or is_retry or is_last_try
        sources = images if partition.is_container(shard) else None
        yield DownloadTask(run, shard, partition.samples_per_shard, manifest.download, accept, sources)


def _show_progress(
    bar: Progress, summary: DownloadSummary, running: Sequence[tuple[DownloadTask, Snapshot]] = ()
) -> None:
    """Count the rows of the committed shards and those that running tasks have tried."""
    tried = summary.tried + sum(state.done for _, state in running)
    downloaded = summary.fetched + sum((state.counts or {}).get("downloaded", 0) for _, state in running)
    pending = f"{wording.count(len(summary.pending), 'shard')} pending" if summary.pending else ""
    if tried or pending:
        bar.note(f"{downloaded / tried:.1%} downloaded" if tried else "", pending)
    bar.advance_to(tried)
    bar.tick()


def _record(summary: DownloadSummary, shard: int, result: TaskResult | Exception) -> None:
    """Add the result of a task to the summary, and log it."""
    where = f"shard {shard_name(shard)}"
    if isinstance(result, Exception) or not _is_marker(result):
        summary.pending[shard] = _pending_reason(result)
        logger.warning(f"{where}: {summary.pending[shard]}")
        return
    summary.add(shard, result)
    failures = {reason: count for reason, count in result["status_dict"].items() if reason != SUCCESS}
    text = f"{where}: {result['successes']:,} of {result['count']:,} images in {result['seconds']:.1f} s"
    reasons = f" ({_format_counts(failures)})" if failures else ""
    done = f"{len(summary.committed):,} of {wording.count(summary.shards, 'shard')} committed"
    logger.info(f"{text}{reasons}; {done}", extra=SHOWN_BY_BAR)
    if captioners := result.get("removed_captions"):
        logger.warning(
            f"{where} has other images than before. Captions by {' and '.join(captioners)} of images that have changed "
            "are removed; the next `lotlip-data recaption` or `import` makes what is missing"
        )


def _is_marker(result: TaskResult) -> TypeIs[ImageMarker]:
    return "parquet" in result


def _pending_reason(result: dict[str, int] | Exception) -> str:
    """Why the shard of a task stays pending: a sentence."""
    if isinstance(result, UserError):  # Ray tasks do not repeat these
        return one_line(result)
    if isinstance(result, Exception):
        return f"its task failed {ATTEMPTS} times: {one_line(result)}"
    return (
        f"no image downloaded ({_format_counts(result)}); the errors look transient, so the shard stays pending. "
        f"Re-run `download` once {retry_condition(result)}, or accept the failures with --accept-failures."
    )


def _format_counts(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in failures.items())
