"""Resolves the scores of a dataset: which files they are in, and the numbers that need the scores of all shards.

The mean and the deviation of each scorer, and the limit of each rule that leaves out a share, depend on all scores.
They are found in passes over the files, one Ray task per shard. A task returns sums, or counts of values. A quantile is
exact: the first pass counts the values by their upper 16 bits, the second one counts those with the upper bits of the
quantile by their lower 16 bits. So memory does not grow with the number of scores.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.artifacts import digest
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import score_file
from lotlip_data.manifests.formats.schema import SCORE
from lotlip_data.manifests.formats.score_file import RAW, ScorerRecord
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.progress import progress_bar
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.settings.scores import ScoreRule
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks
from lotlip_data.pipeline.dataset.builds import plan_builds
from lotlip_data.pipeline.dataset.inputs import format_shards
from lotlip_data.pipeline.dataset.recipe import recipe_of
from lotlip_data.pipeline.dataset.score_rules import check_rules, combined_weights
from lotlip_data.pipeline.dataset.score_tally import HALF_BITS, Moments, from_ordered, to_ordered
from lotlip_data.pipeline.dataset.scores import (
    NO_SCORES,
    TEXT_LEVELS,
    Level,
    Limit,
    ScoreRecipe,
    ScorerInfo,
    Standard,
)

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_HALF = 1 << HALF_BITS
DIGITS = 6
"""Significant digits of means, deviations and limits: what is written is what applies."""

ScoreFiles = dict[str, str]
"""By scorer, the name of a shard's file."""


@dataclass(frozen=True)
class ResolvedScores:
    """The scores of a dataset."""

    recipe: ScoreRecipe
    files: dict[int, ScoreFiles]
    """By shard with images."""
    missing: list[str]
    """What is not scored, each with the command that brings it. The recipe has no numbers then."""


def score_files(run: Run, record: ScorerRecord, shards: Iterable[int]) -> dict[int, str]:
    """By shard, the name of the file with a scorer's scores of its images and texts as they are now."""
    tasks = plan_builds(run, record, shards)
    whole = digest([task.fingerprint for task in tasks]) if record.dataset_wide else ""
    return {
        task.shard: f"{shard_name(task.shard)}-{digest(task.fingerprint, whole) if whole else task.fingerprint}"
        f"{score_file.ENDING}"
        for task in tasks
    }


def resolve_scores(
    run: Run, manifest: Manifest, captioners: Mapping[str, str], json_captioners: Iterable[str], shards: Sequence[int]
) -> ResolvedScores:
    """Find the scores that a dataset has, and the numbers that follow from all of them.

    Args:
        run: The run.
        manifest: Its manifest, whose scorers count.
        captioners: Ids of the dataset's captioners by name.
        json_captioners: Those of them whose texts are JSON objects.
        shards: The shards with images.

    Raises:
        UserError: A rule names a scorer that the manifest does not have, or that scores something else.
    """
    if not manifest.scores:
        check_rules(manifest, {})
        return ResolvedScores(NO_SCORES, {}, [])
    found = _find_files(run, manifest, captioners, shards)
    infos = {name: ScorerInfo(record.id, record.kind, record.scores) for name, record in found.records.items()}
    recipe = ScoreRecipe(scorers=infos, whole_texts=tuple(sorted(json_captioners)))
    if not found.missing:
        check_rules(manifest, found.records)
        recipe = _with_numbers(run, manifest, recipe, found.records, found.files)
    remedy = f"run `lotlip-data score {run.url}`"
    return ResolvedScores(recipe, found.files, [f"missing: {what}: {remedy}" for what in found.missing])


@dataclass
class _Found:
    """The scores of a run as they are stored."""

    files: dict[int, ScoreFiles]
    """By shard, the files that it should have."""
    records: dict[str, ScorerRecord] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """What is not scored, such as `scores by similarity of 3 shards (00001, …)`."""


def _find_files(run: Run, manifest: Manifest, captioners: Mapping[str, str], shards: Sequence[int]) -> _Found:
    found = _Found({shard: {} for shard in shards})
    for entry in manifest.scores:
        what = f"scores by {entry.label}"
        record = score_file.read_scorer(run, entry.label)
        if record is None:
            found.missing.append(what)
            continue
        found.records[entry.label] = record
        unscored = [name for name, id in captioners.items() if record.captioners.get(name) != id]
        if record.scores_texts and unscored:
            found.missing.append(f"{what} of texts by {', '.join(unscored)}")
        if record.scores_texts and record.sub_captions != manifest.shard.sub_captions:
            found.missing.append(f"{what} of sub-captions by the rule `{manifest.shard.sub_captions}`")
        existing = set(storage.list_names(run.scorer(entry.label), score_file.ENDING))
        wanted = score_files(run, record, shards)
        if absent := {shard for shard, name in wanted.items() if name not in existing}:
            found.missing.append(f"{what} of {format_shards(absent)}")
        for shard, name in wanted.items():
            found.files[shard][entry.label] = name
    return found


def missing_scores(run: Run, manifest: Manifest, captioners: Sequence[str] = ()) -> str:
    """What the score stage has not committed, such as `scores by similarity of 3 shards`; empty for nothing.

    Args:
        run: The run.
        manifest: The manifest of the run.
        captioners: As for `shard`.
    """
    if not manifest.scores:
        return ""
    recipe = recipe_of(run, manifest, captioners)
    missing = _find_files(run, manifest, recipe.captioners, ledger.shards_with_images(run)).missing
    return " and ".join(missing)


REMEDY = "Remove it and run `lotlip-data shard`, which writes it again."


def _with_numbers(
    run: Run,
    manifest: Manifest,
    recipe: ScoreRecipe,
    records: Mapping[str, ScorerRecord],
    files: Mapping[int, ScoreFiles],
) -> ScoreRecipe:
    """The recipe with the numbers that depend on all scores. They are stored, once for each state of the scores."""
    rules = manifest.clean.scores
    signed = combined_weights(manifest, records)
    stored = digest(asdict(recipe), signed, [rule.model_dump() for rule in rules], sorted(files.items()))
    url = storage.join(run.score_limits, f"{stored}.json")
    try:
        return artifacts.read_json(url, REMEDY, ScoreRecipe)
    except FileNotFoundError:
        pass
    if recipe.of_texts:
        recipe = replace(recipe, standards=_standards(run, recipe, signed, files))
    recipe = replace(recipe, limits=_limits(run, recipe, rules, files))
    storage.create(url, artifacts.encode_json(TypeAdapter(ScoreRecipe).dump_python(recipe, mode="json")))
    return recipe


def _over_shards(
    what: str, task: Callable[[tuple[int, ScoreFiles]], Answer], files: Mapping[int, ScoreFiles]
) -> Iterable[Answer]:
    """The answers of a task on each shard's files. Raises UserError if one cannot be read."""
    with progress_bar(what, len(files), "shard") as bar:
        for _, answer in run_ray_tasks(task, sorted(files.items()), name=what):
            if isinstance(answer, Exception):
                raise answer if isinstance(answer, UserError) else UserError(f"{what}: {one_line(answer)}")
            bar.update()
            yield answer


def _standards(
    run: Run, recipe: ScoreRecipe, weights: Mapping[str, float], files: Mapping[int, ScoreFiles]
) -> dict[str, dict[str, Standard]]:
    totals = {(level, name): Moments() for level in TEXT_LEVELS for name in recipe.of_texts}
    for moments in _over_shards("standardise scores", partial(shard_moments, run, recipe), files):
        for key, of_shard in moments.items():
            totals[key] += of_shard
    return {
        level: {
            name: Standard(_rounded(total.mean), _rounded(total.deviation), weights[name])
            for name in recipe.of_texts
            if (total := totals[level, name]).count and weights[name]
        }
        for level in TEXT_LEVELS
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def shard_moments(run: Run, recipe: ScoreRecipe, task: tuple[int, ScoreFiles]) -> dict[tuple[Level, str], Moments]:
    """Count, mean and squared deviations of the scores of one shard, by level and scorer. Needs no Ray."""
    values = _Values(run, recipe, task[1])
    return {(level, name): Moments.of(values.of(name, level)) for level in TEXT_LEVELS for name in recipe.of_texts}


def _limits(
    run: Run, recipe: ScoreRecipe, rules: Sequence[ScoreRule], files: Mapping[int, ScoreFiles]
) -> tuple[Limit, ...]:
    shares = [rule for rule in rules if rule.lowest is not None or rule.highest is not None]
    found = iter(_quantiles(run, recipe, shares, files) if shares else [])
    limits = []
    for rule in rules:
        minimum, maximum = rule.below, rule.above
        if rule in shares:
            value = next(found)
            if value is None:
                logger.info(f"`clean.scores`: nothing has a score by {rule.score}, so nothing is left out by it")
                continue
            minimum, maximum = (value, None) if rule.lowest is not None else (None, value)
            what = f"the {'lowest' if rule.lowest else 'highest'} {rule.lowest or rule.highest:.4g}"
            side = f"{'below' if rule.lowest else 'above'} {value:.6g}"
            logger.info(f"`clean.scores`: {what} of {rule.of.replace('_', '-')} by {rule.score} are {side}")
        limits.append(Limit(rule.score, rule.of, minimum, maximum))
    return tuple(limits)


def _quantiles(
    run: Run, recipe: ScoreRecipe, rules: Sequence[ScoreRule], files: Mapping[int, ScoreFiles]
) -> list[float | None]:
    """For each rule that leaves out a share, the limit. None if nothing has a score."""
    upper = _count(run, recipe, rules, [None] * len(rules), files, "count scores")
    targets = [_rank(rule, int(counts.sum())) for rule, counts in zip(rules, upper, strict=True)]
    bins, ranks = [], []
    for counts, target in zip(upper, targets, strict=True):
        ends = np.cumsum(counts)
        number = int(np.searchsorted(ends, target, side="right")) if counts.any() else None
        bins.append(number)
        ranks.append(target - int(ends[number] - counts[number]) if number is not None else 0)
    lower = _count(run, recipe, rules, bins, files, "find limits")
    limits: list[float | None] = []
    for number, rank, counts in zip(bins, ranks, lower, strict=True):
        if number is None:
            limits.append(None)
            continue
        bits = (number << HALF_BITS) | int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        limits.append(float(from_ordered(np.array([bits], np.uint32))[0]))
    return limits


def _rank(rule: ScoreRule, count: int) -> int:
    """The place of the limit among the sorted scores: at most the share of them is beyond it."""
    left_out = int((rule.lowest or rule.highest or 0) * count)
    return left_out if rule.lowest is not None else count - 1 - left_out


def _count(
    run: Run,
    recipe: ScoreRecipe,
    rules: Sequence[ScoreRule],
    bins: Sequence[int | None],
    files: Mapping[int, ScoreFiles],
    what: str,
) -> list[np.ndarray]:
    """For each rule, the number of scores by half of their bits. The arguments are those of `shard_counts`."""
    totals = [np.zeros(_HALF, np.int64) for _ in rules]
    for counts in _over_shards(what, partial(shard_counts, run, recipe, rules, bins), files):
        for total, (numbers, of_shard) in zip(totals, counts, strict=True):
            total[numbers] += of_shard
    return totals


def shard_counts(
    run: Run,
    recipe: ScoreRecipe,
    rules: Sequence[ScoreRule],
    bins: Sequence[int | None],
    task: tuple[int, ScoreFiles],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Count the scores of one shard by half of their ordered bits. Needs no Ray.

    Args:
        run: The run.
        recipe: The recipe, with its standards.
        rules: The rules whose scores are counted.
        bins: For each rule, None to count by the upper 16 bits, or the upper bits of the scores that are counted by
            the lower 16 bits.
        task: The shard and its files.

    Returns:
        For each rule, the halves that occur and the number of scores of each.
    """
    values = _Values(run, recipe, task[1])
    result = []
    for rule, number in zip(rules, bins, strict=True):
        scores = values.of(rule.score, rule.of, highest=rule.lowest is not None)
        bits = to_ordered(scores[np.isfinite(scores)])
        halves = bits >> np.uint32(HALF_BITS)
        if number is not None:
            halves = bits[halves == number] & np.uint32(_HALF - 1)
        result.append(np.unique(halves, return_counts=True))
    return result


class _Values:
    """The scores of one shard as arrays; nan where there is none."""

    def __init__(self, run: Run, recipe: ScoreRecipe, files: ScoreFiles) -> None:
        self._recipe = recipe
        tables = {name: score_file.read_scores(run, name, file) for name, file in files.items()}
        first = next(iter(tables))
        order = tables[first]["uid"]
        self._tables = {}
        for name, table in tables.items():
            places = pc.index_in(order, table["uid"])
            if places.null_count or len(table) != len(order):  # numbers of wrong scores would be stored
                both = " and ".join(run.score_file(scorer, files[scorer]) for scorer in (first, name))
                raise UserError(f"{both}: have different images. Remove both and run `lotlip-data score` again.")
            self._tables[name] = table.take(places)

    def of(self, score: str, level: Level, highest: bool = True) -> np.ndarray:
        """float64 [n]: the scores by a scorer, or the combined ones, of everything of a level.

        Args:
            score: The scorer, or SCORE.
            level: What is scored. A sample has the score of its image, or one of those of its long texts.
            highest: Whether that is the highest one.
        """
        if score != SCORE and self._recipe.scorers[score].scores == "images":
            return _floats(self._tables[score]["image"])
        if level == "samples":
            return self._of_samples(score, highest)
        if score != SCORE:
            return self._read(score, level)
        standards = self._recipe.standards.get(level, {})
        used = {name: standard for name, standard in standards.items() if standard.deviation}
        if not used:
            return np.zeros(0)
        scores = {name: self._read(name, level) for name in used}
        known = {name: np.isfinite(values) for name, values in scores.items()}
        total = sum(known[name] * abs(standard.weight) for name, standard in used.items())
        summed = sum(
            np.where(known[name], standard.weight * (scores[name] - standard.mean) / standard.deviation, 0.0)
            for name, standard in used.items()
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(np.asarray(total) > 0, np.asarray(summed) / np.asarray(total), np.nan).astype(np.float32)

    def _read(self, name: str, level: Level) -> np.ndarray:
        texts = self._tables[name]["texts"].combine_chunks().flatten()
        is_raw = pc.equal(pc.struct_field(texts, "name"), RAW)
        if level == "raw":
            return _floats(pc.struct_field(texts.filter(is_raw), "score"))
        long_texts = texts.filter(pc.invert(is_raw))
        if level == "texts":
            return _floats(pc.struct_field(long_texts, "score"))
        return _floats(pc.list_flatten(pc.struct_field(long_texts, "pieces")))

    def _of_samples(self, score: str, highest: bool) -> np.ndarray:
        name = score if score != SCORE else self._recipe.of_texts[0]
        column = self._tables[name]["texts"].combine_chunks()
        is_long = pc.not_equal(pc.struct_field(column.flatten(), "name"), RAW).to_numpy(zero_copy_only=False)
        images = pc.list_parent_indices(column).to_numpy()[is_long]
        chosen = np.full(len(column), np.nan)
        pick = np.fmax if highest else np.fmin
        pick.at(chosen, images, self.of(score, "texts"))
        return chosen


def _floats(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """float64 [n], with nan for null."""
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False) if len(column) else np.zeros(0)
