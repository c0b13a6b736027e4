"""Images of a manifest, fetched shard by shard: one Ray task a shard, a bounded number of them at a time.

    lists/00017.parquet → img2dataset under the guard → images/00017-ATTEMPT.tar .parquet, then 00017_stats.json

A shard with its marker is done and never fetched again. See `fetch_commit` for a task, `fetch_guard` for what may be
fetched.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.layout import Run, shard_name
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.schema import SUCCESS
from lotlip_data.pipeline import fetch_commit, ledger
from lotlip_data.pipeline.fetch_commit import Work
from lotlip_data.pipeline.ledger import fetched_shards
from lotlip_data.pipeline.partition import Plan, load_plan, partition
from lotlip_data.pipeline.tasks import ATTEMPTS, brief, run_tasks

Marker = dict[str, Any]
Task = Callable[[Work], Marker]


@dataclass
class DownloadSummary:
    """What is fetched, of everything that was asked for. `asked` − `fetched` − `failed` is in shards not done."""

    plan: Plan
    skipped: int
    """Shards that were done before this call."""
    markers: dict[int, Marker] = field(default_factory=dict)
    """Of all shards done."""
    not_done: dict[int, str] = field(default_factory=dict)
    """Shards tried and not done, with the reason."""

    @property
    def asked(self) -> int:
        return self.plan.images

    @property
    def fetched(self) -> int:
        return sum(marker["successes"] for marker in self.markers.values())

    @property
    def failed(self) -> int:
        return sum(self.reasons.values())

    @property
    def reasons(self) -> dict[str, int]:
        """Failures by reason, the most frequent first."""
        total: Counter[str] = Counter()
        for marker in self.markers.values():
            total.update(marker["status_dict"])
        total.pop(SUCCESS, None)
        return dict(total.most_common())

    @property
    def done(self) -> int:
        """Shards that this call fetched."""
        return len(self.markers) - self.skipped

    @property
    def nothing_to_do(self) -> bool:
        return self.skipped == self.plan.shards

    @property
    def failed_shards(self) -> list[str]:
        """A line for each shard that is not done; one more where everything is done and no image came."""
        lines = [f"shard {shard_name(shard)}: {reason}" for shard, reason in sorted(self.not_done.items())]
        if not lines and not self.fetched:
            lines.append(f"none of the {self.asked} images could be fetched: {_counts(self.reasons)}")
        return lines

    def figures(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "asked": self.asked,
            "fetched": self.fetched,
            "failed": self.failed,
            "reasons": self.reasons,
            "shards": self.plan.shards,
            "shards_done": self.done,
            "shards_skipped": self.skipped,
            "shards_not_done": len(self.not_done),
            "list": {name: getattr(self.plan, name) for name in ("rows", "duplicates", "invalid", "filtered", "not_drawn", "sources")},
        }


def download(
    manifest: Manifest,
    run: Run,
    report: Callable[[str], None] = lambda line: None,
    task: Task = fetch_commit.fetch_and_commit,
) -> DownloadSummary:
    """Fetch every shard that is not done. `report` gets a line a shard.

    A shard of which nothing came, for reasons that can pass, stays undone, and so does one whose task dies again
    and again: both are in the summary, and the next call tries them again. Raises what `partition` raises.
    """
    plan = partition(manifest, run, report)
    markers = _markers(run)
    _complete(run, markers)
    summary = DownloadSummary(plan, len(markers), markers)
    left = [shard for shard in range(plan.shards) if shard not in markers]
    if markers:
        report(f"{len(markers)} of {plan.shards} shards are fetched already")
    works = (Work(run, shard, plan.samples_per_shard, manifest.download) for shard in left)
    for work, answer in run_tasks(task, works):
        _take(summary, work.shard, _judge(answer), report)
    fetch_commit.remove_orphans(run, summary.markers)
    return summary


def _complete(run: Run, markers: Mapping[int, Marker]) -> None:
    """Do what follows a commit for shards whose task was killed right after it."""
    recorded = ledger.recorded(run.image_ledger)
    listed = set(storage.list_names(run.quarantine("images")))
    for shard, marker in markers.items():
        tally = recorded.get(shard)
        if tally is None or (tally.failed and f"{shard_name(shard)}.parquet" not in listed):
            fetch_commit.complete(run, shard, marker)


def read_summary(run: Run) -> DownloadSummary:
    """What is fetched in `run` so far; fetches nothing. Raises UserError where the run has no plan yet."""
    if (plan := load_plan(run)) is None:
        raise UserError(f"{run.url}: nothing is planned here yet. Run `lotlip-data download MANIFEST {run.url}` first.")
    markers = _markers(run)
    return DownloadSummary(plan, len(markers), markers)


def _take(summary: DownloadSummary, shard: int, outcome: Marker | str, report: Callable[[str], None]) -> None:
    where = f"shard {shard_name(shard)}"
    if isinstance(outcome, str):
        summary.not_done[shard] = outcome
        report(f"{where}: {outcome}")
        return
    summary.markers[shard] = outcome
    failures = {reason: count for reason, count in outcome["status_dict"].items() if reason != SUCCESS}
    text = f"{where}: {outcome['successes']} of {outcome['count']} images in {outcome['seconds']:.1f} s"
    report(
        f"{text}; {len(summary.markers)} of {summary.plan.shards} shards" + (f" ({_counts(failures)})" * bool(failures))
    )


def _counts(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in failures.items())


def _markers(run: Run) -> dict[int, Marker]:
    """The markers of all shards done, by shard."""
    shards = fetched_shards(run)
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(shards, pool.map(lambda shard: fetch_commit.read_marker(run, shard), shards), strict=True))


def _judge(answer: Marker | Exception) -> Marker | str:
    """What a task ended in as an outcome: a marker, or a sentence where the shard stays undone."""
    if isinstance(answer, Exception):
        return f"its task failed {ATTEMPTS} times: {brief(answer)}"
    if "tar" in answer:
        return answer
    return (
        f"nothing could be fetched ({_counts(answer)}), which may pass: it stays undone. "
        "Start the download again once the servers can be reached."
    )
