"""The recaption stage: every captioner gives every fetched image one caption, or one reason for its absence."""

import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.progress import SHOWN_BY_BAR
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.core.findings import require
from lotlip_data.pipeline.core.ledger import WorkRecord, caption_progress, captioned_shards, fetched_shards
from lotlip_data.pipeline.core.ray_cluster import cluster
from lotlip_data.pipeline.recaptioning.claims import (
    check_model,
    claim_revision,
    claim_settings,
    origin,
    with_claimed_revision,
)
from lotlip_data.pipeline.recaptioning.config import CaptionerJob
from lotlip_data.pipeline.recaptioning.job_checks import check_jobs, check_prompts
from lotlip_data.pipeline.recaptioning.progress import CaptionProgress
from lotlip_data.pipeline.recaptioning.results import RecaptionError, UnitResult, finish_pending_commits

logger = logging.getLogger(__name__)


@dataclass
class RecaptionSummary:
    """What one call did, by captioner."""

    skipped: Counter[str] = field(default_factory=Counter)
    """Shards that an earlier call had committed."""
    units: Counter[str] = field(default_factory=Counter)
    """Shards that this call finished."""
    captions: Counter[str] = field(default_factory=Counter)
    """Images that this call captioned."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Images of the finished shards that have a reason instead of a caption."""
    failed: list[str] = field(default_factory=list)
    """Failed units, each with its reason."""

    @property
    def nothing_to_do(self) -> bool:
        """Whether earlier calls had committed everything."""
        return not self.units and not self.failed

    def to_dict(self) -> dict[str, Any]:
        """The counts by captioner, as `--json` prints them."""
        return {
            name: {
                "shards_skipped": self.skipped[name],
                "shards_done": self.units[name],
                "captioned": self.captions[name],
                "rejected": self.rejected[name],
            }
            for name in self.skipped
        }


def recaption(run: Run, jobs: Sequence[CaptionerJob]) -> RecaptionSummary:
    """Run each captioner over the fetched shards that lack its captions.

    Args:
        run: The run, whose images are downloaded.
        jobs: The captioners, each with its pool.

    Raises:
        RecaptionError: No image is downloaded, or a captioner's folder holds captions made with other settings or
            by another model.
        DiskError: Captions cannot be written.
    """
    if not fetched_shards(run):
        raise RecaptionError(f"{run.url}: no images here yet. Run `lotlip-data download` first.")
    require(check_prompts(text for job in jobs for text in job.config.texts if not captioned_shards(run, text.name)))
    _check_pending(run, jobs)  # before a captioner's name is claimed for settings that do not work
    summary = RecaptionSummary()
    pending: dict[str, list[int]] = {}
    for job in jobs:
        name = job.config.name
        claim_settings(run, job.config)
        claim_revision(run, job.config)
        check_model(run, job.config, origin(job.config, job.pool.engine_options), forget=True)
        progress = caption_progress(run, name)
        finish_pending_commits(run, name, progress.done)
        summary.skipped[name] = len(progress.done)
        pending[name] = list(progress.left)
    pending_jobs = [job for job in jobs if pending[job.config.name]]
    if pending_jobs:
        for job in pending_jobs:
            storage.check_writable(run.captioner(job.config.name))
        with cluster():
            _run_jobs(run, pending_jobs, pending, summary)
    return summary


def _check_pending(run: Run, jobs: Sequence[CaptionerJob]) -> None:
    """Raise UserError if a captioner that has work asks for a model or GPUs that are not available."""
    pending = [job for job in jobs if any(True for _ in caption_progress(run, job.config.name).left)]
    require(check_jobs(replace(job, config=with_claimed_revision(run, job.config)) for job in pending))


def _run_jobs(
    run: Run, jobs: Sequence[CaptionerJob], pending: Mapping[str, Sequence[int]], summary: RecaptionSummary
) -> None:
    """Caption the pending shards (by captioner) on one pool per job, and add the results to the summary."""
    from lotlip_data.pipeline.recaptioning.actor_pool import ActorPool, FailedUnit, run_pools

    def on_done(name: str, result: UnitResult) -> None:
        summary.units[name] += 1
        summary.captions[name] += result.captioned
        summary.rejected[name] += result.rejected
        note = "" if result.won else "; another driver had committed it"
        images, done = wording.count(result.rows, "image"), wording.count(len(pending[name]), "shard")
        logger.info(
            f"{name}: shard {shard_name(result.shard)}: {images}; {summary.units[name]:,} of {done} done{note}",
            extra=SHOWN_BY_BAR,
        )
        record = WorkRecord(result.rows, result.rejected, result.tokens, 0, 0)
        progress.complete(name, result.shard, record)

    def on_failed(unit: FailedUnit) -> None:
        subject = unit.captioner if unit.shard is None else f"{unit.captioner}: shard {shard_name(unit.shard)} failed"
        summary.failed.append(f"{subject}: {unit.reason}")
        logger.warning(summary.failed[-1])
        progress.fail(unit.captioner, unit.shard)

    logger.info(f"starting {wording.count(len(jobs), 'engine')}: {', '.join(job.config.name for job in jobs)}")
    with CaptionProgress(run, {job.config.name: pending[job.config.name] for job in jobs}) as progress:
        pools = [ActorPool(run, job.config, job.pool, deque(pending[job.config.name])) for job in jobs]
        run_pools(pools, on_done, on_failed, progress.refresh)
