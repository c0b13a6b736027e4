"""The recaption stage: every captioner gives every fetched image one caption, or one reason for its absence."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.progress import SHOWN_BY_BAR
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.core.findings import require
from lotlip_data.pipeline.core.ledger import WorkRecord, caption_progress, fetched_shards, record_stop
from lotlip_data.pipeline.core.ray_cluster import cluster
from lotlip_data.pipeline.recaptioning.claims import (
    check_model,
    claim_revision,
    claim_settings,
    origin,
    with_claimed_revision,
)
from lotlip_data.pipeline.recaptioning.config import CaptionerJob
from lotlip_data.pipeline.recaptioning.job_checks import check_jobs, check_prompts, new_texts
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
    require(check_prompts(new_texts(jobs, run)))
    _check_pending(run, jobs)  # before a captioner's name is claimed for settings that do not work
    summary = RecaptionSummary()
    pending: dict[str, list[int]] = {}
    for job in jobs:
        together = [text.name for text in job.config.texts]
        model = origin(job.config, job.pool.engine_options)
        for text in job.texts:
            claim_settings(run, text)
            claim_revision(run, text, together)
            check_model(run, text, model, forget=True)
            progress = caption_progress(run, text.name)
            finish_pending_commits(run, text.name, progress.done)
            summary.skipped[text.name] = len(progress.done)
            pending[text.name] = list(progress.left)
    work = [_Work(job, shards) for job in jobs if (shards := _texts_by_shard(job, pending))]
    if work:
        for name in {name for unit in work for name in unit.names}:
            storage.check_writable(run.captioner(name))
            storage.remove(run.captioner_stopped(name))
        with cluster():
            _caption(run, work, summary)
    return summary


@dataclass(frozen=True)
class _Work:
    """A captioner and what it has left."""

    job: CaptionerJob
    texts: dict[int, tuple[str, ...]]
    """By shard, the names of the texts that it lacks."""

    @property
    def names(self) -> list[str]:
        """The names of the texts that a shard lacks."""
        return [text.name for text in self.job.texts if any(text.name in names for names in self.texts.values())]

    def shards(self, name: str) -> list[int]:
        """The shards that lack a text."""
        return [shard for shard, names in self.texts.items() if name in names]


def _texts_by_shard(job: CaptionerJob, pending: Mapping[str, Sequence[int]]) -> dict[int, tuple[str, ...]]:
    """The texts that each shard lacks, by shard in order."""
    lacking = {text.name: set(pending[text.name]) for text in job.texts}
    shards = sorted(set().union(*lacking.values()))
    return {shard: tuple(name for name, numbers in lacking.items() if shard in numbers) for shard in shards}


def _check_pending(run: Run, jobs: Sequence[CaptionerJob]) -> None:
    """Raise UserError if a captioner that has work asks for a model or GPUs that are not available."""
    pending = []
    for job in jobs:
        if names := [text.name for text in job.texts if any(True for _ in caption_progress(run, text.name).left)]:
            config = with_claimed_revision(run, job.config, names).only(names)
            pending.append(replace(job, config=config))
    require(check_jobs(pending))


def _caption(run: Run, work: Sequence[_Work], summary: RecaptionSummary) -> None:
    """Caption what is left on one pool per captioner, and add the results to the summary."""
    from lotlip_data.pipeline.recaptioning.actor_pool import ActorPool, FailedUnit, run_pools

    finished = Counter[str]()
    totals = {unit.job.config.name: wording.count(len(unit.texts), "shard") for unit in work}

    def on_done(captioner: str, results: Sequence[UnitResult]) -> None:
        finished[captioner] += 1
        for result in results:
            summary.units[result.captioner] += 1
            summary.captions[result.captioner] += result.captioned
            summary.rejected[result.captioner] += result.rejected
            record = WorkRecord(result.rows, result.rejected, result.tokens, 0, 0)
            progress.complete(result.captioner, result.shard, record)
        images = wording.count(results[0].rows, "image") + (f", {len(results)} texts each" if len(results) > 1 else "")
        note = "" if all(result.won for result in results) else "; another driver had committed it"
        logger.info(
            f"{captioner}: shard {shard_name(results[0].shard)}: {images}; {finished[captioner]:,} of "
            f"{totals[captioner]} done{note}",
            extra=SHOWN_BY_BAR,
        )

    def on_failed(unit: FailedUnit) -> None:
        subject = unit.captioner if unit.shard is None else f"{unit.captioner}: shard {shard_name(unit.shard)} failed"
        summary.failed.append(f"{subject}: {unit.reason}")
        logger.warning(summary.failed[-1])
        for text in unit.texts:
            progress.fail(text, unit.shard)
            if unit.shard is None:
                record_stop(run, text, unit.reason)

    names = [_described(unit) for unit in work]
    logger.info(f"starting {wording.count(len(names), 'engine')}: {', '.join(names)}")
    shards = {unit.job.config.name: {name: unit.shards(name) for name in unit.names} for unit in work}
    with CaptionProgress(run, shards) as progress:
        pools = [ActorPool(run, unit.job.config, unit.job.pool, dict(unit.texts)) for unit in work]
        run_pools(pools, on_done, on_failed, progress.refresh)


def _described(work: _Work) -> str:
    """A captioner, with the texts that it makes."""
    name = work.job.config.name
    return f"{name} ({', '.join(work.names)})" if work.job.config.prompts else name
