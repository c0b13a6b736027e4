"""Images of a manifest, fetched shard by shard: one Ray task a shard, a bounded number of them at a time.

    lists/00017.parquet → img2dataset under the guard → images/00017-ATTEMPT.tar .parquet, then 00017_stats.json

A shard with its marker is done and never fetched again; what failed in it can be, as part of another shard (`retry`).
See `fetch_commit` for a task, `fetch_guard` for what may be fetched.
"""

import logging
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import SHOWN_BY_BAR, progress_bar
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.schema import SUCCESS
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import fetched_shards
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import ATTEMPTS, run_ray_tasks
from lotlip_data.pipeline.downloading import commit as fetch_commit
from lotlip_data.pipeline.downloading import failures as fetch_reasons
from lotlip_data.pipeline.downloading import retry
from lotlip_data.pipeline.downloading.commit import DownloadTask
from lotlip_data.pipeline.downloading.failures import Failures
from lotlip_data.pipeline.url_lists.partition import Partition, load_partition, partition

logger = logging.getLogger(__name__)

Marker = dict[str, Any]
Task = Callable[[DownloadTask], Marker]


@dataclass
class DownloadSummary:
    """What is fetched, of everything that was asked for. `asked` − `fetched` − `failed` is in shards not done."""

    plan: Partition
    rounds: list[retry.Round]
    """Of images that are fetched again."""
    skipped: int = 0
    """Shards that were done before this call."""
    committed: set[int] = field(default_factory=set)
    """All shards done. Of their markers only sums are kept: there are 10,000 of 100 million images."""
    fetched: int = 0
    failures: Failures = field(default_factory=Failures)
    """Of all shards done. What is fetched again has not failed until it fails again."""
    not_done: dict[int, str] = field(default_factory=dict)
    """Shards tried and not done, with the reason."""

    @property
    def asked(self) -> int:
        return self.plan.images

    @property
    def shards(self) -> int:
        """Those of the plan, and those of images that are fetched again."""
        return self.plan.shards + sum(one.shards for one in self.rounds)

    @property
    def failed(self) -> int:
        return sum(self.reasons.values())

    @property
    def reasons(self) -> dict[str, int]:
        """Failures by reason, the most frequent first."""
        return dict(self.failures.reasons.most_common())

    @property
    def done(self) -> int:
        """Shards that this call fetched."""
        return len(self.committed) - self.skipped

    @property
    def nothing_to_do(self) -> bool:
        return self.skipped == self.shards

    @property
    def failed_shards(self) -> list[str]:
        """A line for each shard that is not done; one more where everything is done and no image came."""
        lines = [f"shard {shard_name(shard)}: {reason}" for shard, reason in sorted(self.not_done.items())]
        if not lines and not self.fetched:
            lines.append(f"none of the {self.asked} images could be fetched: {_counts(self.reasons)}")
        return lines

    def add(self, shard: int, marker: Marker, retried: Collection[str] = ()) -> None:
        """Count a shard that is done. What failed in it for one of the reasons `retried` is in another one by now."""
        self.committed.add(shard)
        self.fetched += marker["successes"]
        self.failures.add(marker, retried)

    def to_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "asked": self.asked,
            "fetched": self.fetched,
            "failed": self.failed,
            **self.failures.to_dict(),
            "retried": sum(one.rows for one in self.rounds),
            "shards": self.shards,
            "shards_done": self.done,
            "shards_skipped": self.skipped,
            "shards_not_done": len(self.not_done),
            "list": {
                name: getattr(self.plan, name)
                for name in ("rows", "duplicates", "invalid", "filtered", "not_drawn", "garbled", "sources")
            },
        }


def download(
    manifest: Manifest,
    run: Run,
    task: Task = fetch_commit.fetch_and_commit,
    retry_failed: bool = False,
    accept_failures: bool = False,
) -> DownloadSummary:
    """Download every shard that is not done.

    A shard of which nothing came, for reasons that can pass, stays undone, and so does one whose task dies again
    and again: both are in the summary, and the next call tries them again. The former is done without an image all the
    same where `accept_failures` says so, or where it is the last of the settings' `shard_tries`.

    `retry_failed`: fetch again, in further shards, what failed in the committed ones for reasons that can pass, or go
    on with that. Raises what `partition` raises.
    """
    plan = partition(manifest, run)
    summary = _look(run, plan)
    _complete(run, summary)
    if retry_failed and _begin_round(run, summary):
        summary = _look(run, plan)
        last = summary.rounds[-1]
        logger.info(f"downloading {last.rows} images again, in {last.shards} further shards")
    for one in summary.rounds:
        retry.prepare(run, one)
    if summary.committed:
        logger.info(f"{len(summary.committed)} of {summary.shards} shards are already downloaded")
    tries = ledger.tries(run)
    works = (
        DownloadTask(
            run,
            shard,
            plan.samples_per_shard,
            manifest.download,
            # A row of a retry has had its other chance, and can be retried as often as one likes.
            accept=accept_failures or shard >= plan.shards or tries[shard] + 1 >= manifest.download.shard_tries,
        )
        for shard in range(summary.shards)
        if shard not in summary.committed
    )
    empty = []
    with progress_bar("download", summary.shards, "shard", initial=len(summary.committed)) as bar:
        for work, answer in run_ray_tasks(task, works):
            outcome = _judge(answer)
            if isinstance(answer, dict) and isinstance(outcome, str):
                empty.append(work.shard)
            _take(summary, work.shard, outcome)
            bar.set_postfix_str(f"{summary.fetched:,} images", refresh=False)
            bar.update(work.shard in summary.committed)
    if summary.fetched:  # a run that never got an image has no network, or no right settings, so far
        token = uuid.uuid4().hex[:12]
        for shard in empty:
            ledger.note_try(run, shard, token)
    fetch_commit.remove_orphans(run, summary.committed)
    return summary


def _look(run: Run, plan: Partition) -> DownloadSummary:
    summary = DownloadSummary(plan, retry.rounds(run))
    retried, shards = retry.retried(summary.rounds), fetched_shards(run)
    for shard, marker in zip(shards, map_ordered(partial(ledger.read_image_stats, run), shards), strict=True):
        summary.add(shard, marker, retried.get(shard, ()))
    summary.skipped = len(shards)
    return summary


def _begin_round(run: Run, summary: DownloadSummary) -> bool:
    """Another round of retries, unless the last one is not done yet. Whether there is one."""
    first = summary.shards
    if any(shard not in summary.committed for shard in range(summary.plan.shards, first)):
        logger.info("resuming the previous --retry-failed download")
        return False
    if not retry.open_round(run, summary.rounds, first, summary.plan.samples_per_shard, summary.committed):
        logger.info("no image failed for a transient reason")
        return False
    return True


def _complete(run: Run, summary: DownloadSummary) -> None:
    """Do what follows a commit for shards whose task was killed right after it."""
    recorded = ledger.recorded(run.image_ledger)
    listed = set(storage.list_names(run.quarantine("images"), ".parquet"))
    retried = retry.retried(summary.rounds)
    for shard in sorted(summary.committed):
        tally = recorded.get(shard)
        if tally is None or (tally.failed and f"{shard_name(shard)}.parquet" not in listed):
            fetch_commit.finish_commit(run, shard, ledger.read_image_stats(run, shard), retried.get(shard, ()))


def read_summary(run: Run) -> DownloadSummary:
    """What is fetched in `run` so far; fetches nothing. Raises UserError where the run has no plan yet."""
    if (plan := load_partition(run)) is None:
        raise UserError(f"{run.url}: nothing is planned here yet. Run `lotlip-data download MANIFEST {run.url}` first.")
    return _look(run, plan)


def _take(summary: DownloadSummary, shard: int, outcome: Marker | str) -> None:
    where = f"shard {shard_name(shard)}"
    if isinstance(outcome, str):
        summary.not_done[shard] = outcome
        logger.warning(f"{where}: {outcome}")
        return
    summary.add(shard, outcome)
    failures = {reason: count for reason, count in outcome["status_dict"].items() if reason != SUCCESS}
    text = f"{where}: {outcome['successes']} of {outcome['count']} images in {outcome['seconds']:.1f} s"
    why = f" ({_counts(failures)})" if failures else ""
    logger.info(f"{text}; {len(summary.committed)} of {summary.shards} shards{why}", extra=SHOWN_BY_BAR)


def _counts(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in failures.items())


def _judge(answer: Marker | Exception) -> Marker | str:
    """What a task ended in as an outcome: a marker, or a sentence where the shard stays undone."""
    if isinstance(answer, UserError):  # which is not tried again
        return one_line(answer)
    if isinstance(answer, Exception):
        return f"its task failed {ATTEMPTS} times: {one_line(answer)}"
    if "tar" in answer:
        return answer
    return (
        f"nothing could be fetched ({_counts(answer)}), which may pass: it stays undone. "
        f"Start the download again once {fetch_reasons.retry_condition(answer)}, or accept that with --accept-failures."
    )
