"""The recaption stage: every fetched image gets one caption, or one reason, from every chosen captioner."""

import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lotlip_data.manifests.progress import SHOWN_BY_BAR
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.ledger import caption_progress, fetched_shards
from lotlip_data.pipeline.core.ray_tasks import cluster
from lotlip_data.pipeline.recaptioning.config import CaptionerJob
from lotlip_data.pipeline.recaptioning.progress import CaptionProgress
from lotlip_data.pipeline.recaptioning.results import RecaptionError, UnitResult, claim_settings, finish_pending_commits

logger = logging.getLogger(__name__)


@dataclass
class RecaptionSummary:
    """What one call did, by captioner: shards that were `skipped` as committed, and `units` done now."""

    skipped: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    """Units that were given up, each with its reason."""

    @property
    def nothing_to_do(self) -> bool:
        return not self.units and not self.failed

    def to_dict(self) -> dict[str, Any]:
        """By captioner, for scripts."""
        return {
            name: {
                "shards_skipped": self.skipped[name],
                "shards_done": self.units[name],
                "captioned": self.captions[name],
                "rejected": self.rejected[name],
            }
            for name in self.skipped
        }


def recaption(run: Run, chosen: Sequence[CaptionerJob]) -> RecaptionSummary:
    """Run each captioner over the fetched shards that lack its captions.

    Raises RecaptionError where nothing is fetched, or where a captioner's folder holds captions made with other
    settings.
    """
    if not fetched_shards(run):
        raise RecaptionError(f"{run.url}: no images here yet. Run `lotlip-data download` first.")
    summary = RecaptionSummary()
    left: dict[str, deque[int]] = {}
    for name, captioner in ((one.config.name, one.config) for one in chosen):
        claim_settings(run, captioner)
        work = caption_progress(run, name)
        finish_pending_commits(run, name, work.done)
        summary.skipped[name] = len(work.done)
        left[name] = deque(work.left)
    busy = [one for one in chosen if left[one.config.name]]
    if busy:
        with cluster():
            _work_off(run, busy, left, summary)
    return summary


def _work_off(
    run: Run,
    busy: Sequence[CaptionerJob],
    left: dict[str, deque[int]],
    summary: RecaptionSummary,
) -> None:
    from lotlip_data.pipeline.recaptioning.actor_pool import ActorPool, FailedUnit, run_pools

    total = {name: len(units) for name, units in left.items()}

    def done(name: str, result: UnitResult) -> None:
        summary.units[name] += 1
        summary.captions[name] += result.captioned
        summary.rejected[name] += result.rejected
        lost = "" if result.won else ", another driver had committed it"
        logger.info(
            f"{name}: shard {result.shard} of {result.rows} images ({summary.units[name]} of {total[name]}){lost}",
            extra=SHOWN_BY_BAR,
        )
        progress.complete(name, result.shard, result.rows)

    def failed(unit: FailedUnit) -> None:
        what = unit.captioner if unit.shard is None else f"{unit.captioner}: shard {unit.shard} given up"
        summary.failed.append(f"{what}: {unit.reason}")
        logger.warning(summary.failed[-1])

    with CaptionProgress(run, {job.config.name: list(left[job.config.name]) for job in busy}) as progress:
        pools = [ActorPool(run, job.config, job.pool, left[job.config.name]) for job in busy]
        run_pools(pools, done, failed, progress.refresh)
