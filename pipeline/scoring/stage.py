"""The score stage: every scorer of the manifest gives its numbers to the images and texts of every shard, on Ray.

A shard's scores are one Parquet file per scorer, committed by one exclusive create. Its name identifies the scorer's
settings, the images and the captions, so scores of an earlier state are not taken for current ones; they are removed
once the current ones are complete.
"""

import functools
import json
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any, cast

import numpy as np

from lotlip_data.manifests import artifacts, storage, wording
from lotlip_data.manifests.artifacts import digest
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import score_file
from lotlip_data.manifests.formats.score_file import ScorerRecord
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import SHOWN_BY_BAR, progress_bar
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.settings.scores import ScorerEntry
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.checks import check_gpus
from lotlip_data.pipeline.core.findings import require
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_cluster import cluster, cpus_per_gpu
from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.dataset.builds import plan_builds
from lotlip_data.pipeline.dataset.inputs import ready_shards
from lotlip_data.pipeline.dataset.recipe import captioner_settings, select_texts
from lotlip_data.pipeline.dataset.score_limits import score_files
from lotlip_data.pipeline.dataset.score_rules import check_columns, check_rules
from lotlip_data.pipeline.scoring.base import (
    DatasetScorer,
    ShardScorer,
    Summarises,
    Survey,
)
from lotlip_data.pipeline.scoring.registry import load_scorer
from lotlip_data.pipeline.scoring.shards import (
    AssignTask,
    ScoredShard,
    assign_shard,
    iter_images,
    read_survey,
    score_shard,
    survey_shard,
)

logger = logging.getLogger(__name__)

GPUS_PER_TASK = 0.5
"""GPUs of a task of a scorer with a model, where the cluster has GPUs: while one task reads, the other computes."""


@dataclass
class ScoreSummary:
    """What one call did, by scorer."""

    skipped: Counter[str] = field(default_factory=Counter)
    """Shards that an earlier call had scored."""
    scored: Counter[str] = field(default_factory=Counter)
    """Shards that this call scored."""
    images: Counter[str] = field(default_factory=Counter)
    """Images of these shards."""
    without: dict[str, Counter[str]] = field(default_factory=dict)
    """Images of these shards without scores, by reason."""
    failed: list[str] = field(default_factory=list)
    """What could not be scored, each with its reason, or what is missing, each with the command that brings it."""

    @property
    def nothing_to_do(self) -> bool:
        return not (self.scored or self.failed)

    def to_dict(self) -> dict[str, Any]:
        """The counts by scorer, as `--json` prints them."""
        return {
            name: {
                "shards_skipped": self.skipped[name],
                "shards_scored": self.scored[name],
                "images": self.images[name],
                "without_scores": dict(self.without.get(name, {})),
            }
            for name in self.skipped
        }

    def lines(self) -> list[str]:
        """The counts for people."""
        lines = []
        for name, shards in self.scored.items():
            images = wording.count(self.images[name], "image")
            lines.append(f"score: {name}: {wording.count(shards, 'shard')} with {images}")
            for reason, count in self.without.get(name, Counter()).most_common():
                lines.append(f"  {wording.count(count, 'image')} without scores: {reason}")
        return lines


def score(manifest: Manifest, run: Run, names: Sequence[str] = (), gpus: float | None = None) -> ScoreSummary:
    """Score every shard that has images and captions by all captioners.

    Args:
        manifest: The manifest of the run.
        run: The run.
        names: Scorers to run. Default: all of the manifest.
        gpus: GPUs that Ray reserves per task of a scorer with a model. Default: each entry's, otherwise GPUS_PER_TASK
            where the cluster has GPUs.

    Raises:
        UserError: The run has no images, the manifest has no such scorer, a rule or a name is wrong, or a model cannot
            be loaded.
    """
    entries = [entry for entry in manifest.scores if not names or entry.label in names]
    if unknown := sorted(set(names) - {entry.label for entry in entries}):
        known = ", ".join(entry.label for entry in manifest.scores) or "none"
        raise UserError(f"there is no scorer {unknown[0]} in {run.manifest}; its `scores` are {known}")
    if not entries:
        raise UserError(f"{run.manifest}: has no `scores`; add scorers, such as `scores: [repetition]`")
    fetched = ledger.fetched_shards(run)
    if not fetched:
        raise UserError(f"{run.url}: no images here yet. Run `lotlip-data download` first.")
    captioners = {name: str(captioner_settings(run, name)["id"]) for name in select_texts(run, manifest)}
    require([check_gpus("score", gpus or 0), *(check_gpus(entry.label, entry.gpus or 0) for entry in entries)])
    scorers = {entry.label: load_scorer(entry) for entry in manifest.scores}
    check_rules(manifest, scorers)
    check_columns(manifest, scorers, captioners)
    scorings = [_Scoring(run, manifest, entry, scorers[entry.label], captioners, gpus) for entry in entries]
    ready, missing = ready_shards(run, manifest, fetched, list(captioners), f"lotlip-data score {run.url}")
    summary = ScoreSummary(failed=list(missing))
    for line in missing:
        logger.info(line)
    shards = sorted(ready & set(ledger.shards_with_images(run)))
    for scoring in scorings:
        scoring.claim()
        scoring.run_on(shards, summary, complete=not missing)
    return summary


class _Scoring:
    """One scorer of a run, and its work."""

    def __init__(
        self,
        run: Run,
        manifest: Manifest,
        entry: ScorerEntry,
        scorer: ShardScorer | DatasetScorer,
        captioners: Mapping[str, str],
        gpus: float | None,
    ) -> None:
        self._run, self._entry, self._scorer = run, entry, scorer
        self._gpus = entry.gpus if gpus is None or not entry.model else gpus
        self.name = entry.label
        is_of_texts = scorer.scores == "texts"
        rule = manifest.shard.sub_captions
        settings = json.loads(json.dumps({"kind": entry.kind, **scorer.identity}))  # loads the model
        self.record = ScorerRecord(
            id=digest(settings, rule if is_of_texts else None),
            kind=entry.kind,
            scores=scorer.scores,
            better=scorer.better,
            dataset_wide=hasattr(scorer, "combine"),
            sub_captions=rule,
            captioners=dict(captioners) if is_of_texts else {},
            settings=settings,
        )

    def claim(self) -> None:
        """Write what makes the scores. Scores of other settings stay until those of these are complete."""
        earlier = score_file.read_scorer(self._run, self.name)
        if earlier == self.record:
            return
        if earlier is not None and earlier.id != self.record.id:
            logger.info(f"{self.name}: its settings or its model have changed, so all shards are scored again")
        storage.replace(self._run.scorer_settings(self.name), artifacts.encode_json(asdict(self.record), indent=1))

    def run_on(self, shards: Sequence[int], summary: ScoreSummary, complete: bool) -> None:
        """Score what is not scored of these shards.

        Args:
            shards: The shards that have images and all captions.
            summary: Gets the counts.
            complete: Whether these are all shards of the run with images.
        """
        run, name = self._run, self.name
        if self.record.dataset_wide and not complete:
            logger.info(f"{name}: compares all images, so it waits until none is missing")
            summary.skipped[name] += 0
            return
        storage.check_writable(run.scorer(name))
        wanted = score_files(run, self.record, shards)
        existing = set(storage.list_names(run.scorer(name), score_file.ENDING))
        pending = {shard: file for shard, file in wanted.items() if file not in existing}
        summary.skipped[name] = len(wanted) - len(pending)
        self._renew_records(pending, wanted)
        failures = len(summary.failed)
        if pending and self.record.dataset_wide:
            self._compare(shards, pending, summary)
        elif pending:
            task = functools.partial(score_shard, run, self._entry, self.record)
            self._run_tasks(task, list(pending.items()), len(pending), summary)
        if complete and len(summary.failed) == failures:
            for file in existing.difference(wanted.values()):
                storage.remove(run.score_file(name, file))

    def _renew_records(self, pending: Collection[int], wanted: Mapping[int, str]) -> None:
        """Remove the records of earlier scores, and add those of a driver that was killed before it added them."""
        ledger.forget(self._run.score_ledger(self.name), pending)
        recorded = ledger.recorded(self._run.score_ledger(self.name))
        for shard, file in wanted.items():
            if shard not in pending and shard not in recorded:
                scores = score_file.read_scores(self._run, self.name, file)
                now = int(time.time())
                without = len(scores) - scores["error"].null_count
                ledger.record(self._run.score_ledger(self.name), shard, WorkRecord(len(scores), without, 0, now, now))

    def _run_tasks(self, task: Any, items: Iterable[Any], total: int, summary: ScoreSummary) -> None:
        name = self.name
        summary.without.setdefault(name, Counter())
        with cluster(), progress_bar(f"score {name}", total, "shard") as bar:
            gpus = self._gpus
            if gpus is None:
                gpus = GPUS_PER_TASK if self._entry.model and cpus_per_gpu() is not None else 0
            for (shard, *_), result in run_ray_tasks(task, items, num_gpus=gpus, name=f"score {name}"):
                bar.update()
                if isinstance(result, Exception):
                    summary.failed.append(f"{name}: shard {shard_name(shard)}: {one_line(result)}")
                    logger.warning(summary.failed[-1])
                    continue
                counted = cast(ScoredShard, result)
                summary.scored[name] += 1
                summary.images[name] += counted.images
                summary.without[name].update(counted.without)
                logger.info(f"{name}: shard {shard_name(shard)} is scored", extra=SHOWN_BY_BAR)

    def _compare(self, shards: Sequence[int], pending: Mapping[int, str], summary: ScoreSummary) -> None:
        """Survey the shards that are not surveyed, compare all of them, and give each its numbers."""
        run, name = self._run, self.name
        stems = {
            task.shard: f"{shard_name(task.shard)}-{task.fingerprint}" for task in plan_builds(run, self.record, shards)
        }
        surveys = _surveys(run, name)
        left = [(shard, stem) for shard, stem in stems.items() if stem not in surveys]
        failed = []
        with progress_bar(f"survey {name}", len(left), "shard") as bar:
            survey = functools.partial(survey_shard, run, self._entry, self.record)
            for (shard, _), result in run_ray_tasks(survey, left, name=f"survey {name}"):
                bar.update()
                if isinstance(result, Exception):
                    failed.append(f"{name}: shard {shard_name(shard)} could not be surveyed: {one_line(result)}")
                    logger.warning(failed[-1])
        if failed:
            summary.failed += failed
            return
        surveys = _surveys(run, name)
        current = {shard: surveys[stem] for shard, stem in stems.items()}
        rows = sum(int(file.removesuffix(score_file.ENDING).rpartition("-")[2]) for file in current.values())
        scorer = cast(DatasetScorer, self._scorer)
        with scratch_folder("score") as scratch:
            folder = scratch / "rows"
            folder.mkdir()
            tables = map_ordered(lambda file: read_survey(run, name, file), current.values())
            columns = (Survey(tuple(column.to_numpy() for column in table.columns)) for table in tables)
            numbers = scorer.combine(zip(current, columns, strict=True), rows, folder)
            first = list(islice(numbers, 1))  # the shards are compared now
            if isinstance(scorer, Summarises):  # before the scores are complete, so that no kill leaves them without it
                read_shard = functools.partial(iter_images, run, self.record, reads_images=False)
                content = scorer.summarise(folder, read_shard)
                storage.replace(run.score_summary(name), artifacts.encode_json(asdict(content), indent=1))
            items = _with_files(chain(first, numbers), pending, current)
            self._run_tasks(
                functools.partial(assign_shard, run, self._entry, self.record), items, len(pending), summary
            )
        for file in set(surveys.values()).difference(current.values()):
            storage.remove(run.score_survey(name, file))


def _surveys(run: Run, name: str) -> dict[str, str]:
    """The stored surveys by shard and fingerprint. The name of a file has the number of its rows, too."""
    files = storage.list_names(run.score_survey(name), score_file.ENDING)
    return {file.rpartition("-")[0]: file for file in files}


def _with_files(
    numbers: Iterable[tuple[int, np.ndarray]], files: Mapping[int, str], surveys: Mapping[int, str]
) -> Iterator[AssignTask]:
    """The shards that are to be scored: first those with numbers, then those without any text."""
    left = dict(files)
    for shard, of_shard in numbers:
        if file := left.pop(shard, None):
            yield AssignTask(shard, file, surveys[shard], of_shard)
    for shard, file in left.items():
        yield AssignTask(shard, file, surveys[shard], np.zeros(0))
