"""The recaption stage: every captioner gives every fetched image one caption, or one reason for its absence.

The stage takes the downloaded shards, and further ones while the download goes on, where an `Upstream` says so.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.progress import SHOWN_BY_BAR
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.core.findings import require
from lotlip_data.pipeline.core.ledger import (
    WorkRecord,
    caption_progress,
    captioned_shards,
    fetched_images,
    fetched_shards,
    record_stop,
    recording_stop,
    shards_with_images,
)
from lotlip_data.pipeline.core.ray_cluster import cluster
from lotlip_data.pipeline.core.upstream import Upstream
from lotlip_data.pipeline.downloading.remaining import remaining
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

if TYPE_CHECKING:
    from lotlip_data.pipeline.recaptioning.actor_pool import FailedUnit

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


def recaption(run: Run, jobs: Sequence[CaptionerJob], upstream: Upstream | None = None) -> RecaptionSummary:
    """Run each captioner over the fetched shards that lack its captions.

    Args:
        run: The run, whose images are downloaded.
        jobs: The captioners, each with its pool.
        upstream: The download, if it may still go on: shards are then captioned as they come. Default: it has ended.

    Raises:
        RecaptionError: No image is downloaded, or a captioner's folder holds captions made with other settings or
            by another model.
        DiskError: Captions cannot be written.
    """
    if upstream is None:
        _check_images(run)
    require(check_prompts(new_texts(jobs, run)))
    _check_pending(run, jobs, upstream is not None)  # before a name is claimed for settings that do not work
    summary = RecaptionSummary()
    for job in jobs:
        _claim(run, job, summary)
    arrivals = _Arrivals(run, jobs, upstream)
    first = arrivals.take()
    work = [_Work(job, texts, arrivals.more) for job, texts in zip(jobs, first, strict=True) if texts or arrivals.more]
    if work:
        names = {name for unit in work for name in unit.names}
        for name in names:
            storage.check_writable(run.captioner(name))
        with recording_stop(*map(run.captioner_stopped, names)), cluster():
            _Captioning(run, work, arrivals, summary).run()
    if upstream is not None:
        _check_images(run)
    return summary


def _claim(run: Run, job: CaptionerJob, summary: RecaptionSummary) -> None:
    """Claim the names of a captioner's texts, and complete what a killed call has committed."""
    together = [text.name for text in job.config.texts]
    model = origin(job.config, job.pool.engine_options)
    for text in job.texts:
        claim_settings(run, text)
        claim_revision(run, text, together)
        check_model(run, text, model, forget=True)
        progress = caption_progress(run, text.name)
        finish_pending_commits(run, text.name, progress.done)
        summary.skipped[text.name] = len(progress.done)


def _check_images(run: Run) -> None:
    if not fetched_shards(run):
        raise RecaptionError(f"{run.url}: no images here yet. Run `lotlip-data download` first.")


ShardTexts = dict[int, tuple[str, ...]]
"""By shard in order, the names of the texts that it lacks."""


class _Arrivals:
    """The shards that captioners have to caption, as they are downloaded.

    Args:
        run: The run.
        jobs: The captioners.
        upstream: The download; None if it has ended.
    """

    def __init__(self, run: Run, jobs: Sequence[CaptionerJob], upstream: Upstream | None) -> None:
        self._run, self._jobs, self._upstream = run, jobs, upstream
        self._seen: set[int] = set()
        """The shards that were looked at. Each is handed out once at most."""
        self.shards_to_come = 0
        self.images_to_come = 0
        """An estimate: shards to come are taken to be like those that have come."""

    @property
    def more(self) -> bool:
        """Whether further shards may come."""
        return self._upstream is not None and not self._upstream.ended

    def is_due(self) -> bool:
        """Whether it is time to call `take` again."""
        return self._upstream is not None and self._upstream.is_due()

    def take(self) -> list[ShardTexts]:
        """By captioner, the shards that have come since the last call and lack texts."""
        new = self._list() if self._upstream is None else self._upstream.look(self._list)
        if not self.more:
            self.shards_to_come = self.images_to_come = 0
        return new

    def _list(self) -> list[ShardTexts]:
        if self._upstream is not None and (rest := remaining(self._run)):
            fetched = fetched_shards(self._run)
            images = fetched_images(self._run, fetched) / len(fetched) if fetched else rest.samples_per_shard
            self.shards_to_come, self.images_to_come = rest.left, round(rest.left * images)
        new = [shard for shard in shards_with_images(self._run) if shard not in self._seen]
        self._seen.update(new)
        return [self._lacking(job, new) for job in self._jobs]

    def _lacking(self, job: CaptionerJob, shards: Sequence[int]) -> ShardTexts:
        """Which of these shards lack texts of a captioner."""
        if not shards:
            return {}
        done = {text.name: set(captioned_shards(self._run, text.name)) for text in job.texts}
        lacking = {shard: tuple(name for name, captioned in done.items() if shard not in captioned) for shard in shards}
        return {shard: names for shard, names in lacking.items() if names}


@dataclass(frozen=True)
class _Work:
    """A captioner and what it has left."""

    job: CaptionerJob
    texts: ShardTexts
    more: bool
    """Whether further shards may come."""

    @property
    def name(self) -> str:
        return self.job.config.name

    @property
    def names(self) -> list[str]:
        """The names of the texts that a shard lacks, or may lack."""
        lacking = {name for names in self.texts.values() for name in names}
        return [text.name for text in self.job.texts if self.more or text.name in lacking]

    def shards(self, name: str) -> list[int]:
        """The shards that lack a text."""
        return [shard for shard, names in self.texts.items() if name in names]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.names)})" if self.job.config.prompts else self.name


def _check_pending(run: Run, jobs: Sequence[CaptionerJob], follows: bool) -> None:
    """Raise UserError if a captioner that has or gets work asks for a model or GPUs that are not available."""
    pending = []
    for job in jobs:
        texts = [text.name for text in job.texts]
        if names := [name for name in texts if follows or any(True for _ in caption_progress(run, name).left)]:
            config = with_claimed_revision(run, job.config, names).only(names)
            pending.append(replace(job, config=config))
    require(check_jobs(pending))


class _Captioning:
    """Captions what is left, and what comes, on one pool per captioner, and adds the results to a summary."""

    def __init__(self, run: Run, work: Sequence[_Work], arrivals: _Arrivals, summary: RecaptionSummary) -> None:
        from lotlip_data.pipeline.recaptioning.actor_pool import ActorPool

        self._run, self._arrivals, self._summary = run, arrivals, summary
        self._finished = Counter[str]()
        self._totals = Counter({unit.name: len(unit.texts) for unit in work})
        shards = {unit.name: {name: unit.shards(name) for name in unit.names} for unit in work}
        self._progress = CaptionProgress(run, shards, arrivals.images_to_come)
        self._pools = [
            ActorPool(
                run,
                unit.job.config,
                unit.job.pool,
                dict(unit.texts),
                more=unit.more,
                expected=arrivals.shards_to_come,
                wanted=tuple(unit.names),
            )
            for unit in work
        ]
        logger.info(f"starting {wording.count(len(work), 'engine')}: {', '.join(map(str, work))}")

    def run(self) -> None:
        from lotlip_data.pipeline.recaptioning.actor_pool import run_pools

        with self._progress:
            run_pools(self._pools, self._on_done, self._on_failed, self._on_tick)

    def _on_done(self, captioner: str, results: Sequence[UnitResult]) -> None:
        self._finished[captioner] += 1
        for result in results:
            self._summary.units[result.captioner] += 1
            self._summary.captions[result.captioner] += result.captioned
            self._summary.rejected[result.captioner] += result.rejected
            record = WorkRecord(result.rows, result.rejected, result.tokens, 0, 0)
            self._progress.complete(result.captioner, result.shard, record)
        images = wording.count(results[0].rows, "image") + (f", {len(results)} texts each" if len(results) > 1 else "")
        note = "" if all(result.won for result in results) else "; another driver had committed it"
        total = wording.count(self._totals[captioner] + self._arrivals.shards_to_come, "shard")
        logger.info(
            f"{captioner}: shard {shard_name(results[0].shard)}: {images}; {self._finished[captioner]:,} of {total} "
            f"done{note}",
            extra=SHOWN_BY_BAR,
        )

    def _on_failed(self, unit: "FailedUnit") -> None:
        subject = unit.captioner if unit.shard is None else f"{unit.captioner}: shard {shard_name(unit.shard)} failed"
        self._summary.failed.append(f"{subject}: {unit.reason}")
        logger.warning(self._summary.failed[-1])
        for text in unit.texts:
            self._progress.fail(text, unit.shard)
            if unit.shard is None:
                record_stop(self._run.captioner_stopped(text), unit.reason)

    def _on_tick(self) -> None:
        if self._arrivals.is_due():
            for pool, texts in zip(self._pools, self._arrivals.take(), strict=True):  # each captioner has a pool then
                self._totals[pool.config.name] += len(texts)
                pool.extend(texts, self._arrivals.shards_to_come, self._arrivals.more)
                self._progress.extend(pool.config.name, texts, self._arrivals.images_to_come)
        self._progress.refresh()
