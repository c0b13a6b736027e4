"""Finds the images to leave out because of other images: duplicates within the run, and images of evaluation sets.

Each shard is surveyed on its own, on Ray: its images are hashed (once, the hashes are committed), compared with the
evaluation sets, and reduced to a few numbers per image. The driver spills these numbers to disk, compares them bucket
by bucket, and commits one list of excluded images per shard. Only images that pass the filters on size and raw texts
take part, so no image is left out because of an image that the filters leave out.

Everything in RUN/clean follows from the images and the settings, and can be removed at any time.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lotlip_data.manifests import artifacts, storage, wording
from lotlip_data.manifests.artifacts import digest
from lotlip_data.manifests.formats.schema import SUCCESS
from lotlip_data.manifests.progress import progress_bar
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.settings import CleanSettings
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import fetched_images, image_stamps
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.core.spilled_rows import SpilledRows, spread
from lotlip_data.pipeline.curation import decontamination, near_duplicates
from lotlip_data.pipeline.curation.filters import Exclusion, Filters, image_rejection, raw_texts
from lotlip_data.pipeline.curation.near_duplicates import Duplicates
from lotlip_data.pipeline.curation.perceptual_hash import find_near, shard_hashes
from lotlip_data.pipeline.downloading.reader import fetched_rows

logger = logging.getLogger(__name__)

DUPLICATE, NEAR_DUPLICATE, EVALUATION_IMAGE = "duplicate", "near_duplicate", "evaluation_image"
_REASONS = (DUPLICATE, NEAR_DUPLICATE)
"""By number, in the order of precedence: equal bytes say more than similar looks."""
_EVALUATION_NUMBER = len(_REASONS)
_EXCLUSIONS = pa.schema([("row", pa.uint32()), ("reason", pa.string()), ("of", pa.string()), ("distance", pa.int32())])
_COLUMNS = ["key", "uid", "sha256", "status", "texts", "sources", "original_width", "original_height"]
_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1


@dataclass(frozen=True)
class ShardSurvey:
    """The numbers of one shard of n images, of which h have a perceptual hash. All arrays are uint64."""

    positions: np.ndarray
    """[n]: shard · 2³² + row, in the order of the run."""
    upper: np.ndarray
    """[n]: the first 64 bits of the sha256."""
    lower: np.ndarray
    """[n]: the next 64 bits of the sha256."""
    hashed: np.ndarray
    """[h]: the positions of the images with a perceptual hash."""
    hashes: np.ndarray
    """[h]: their perceptual hashes."""
    precedence: np.ndarray
    """[h]: of images that look alike, the one with the lowest value stays."""
    evaluation: list[tuple[int, str, int]]
    """The images that an evaluation set contains: row, name in the set, and Hamming distance of the hashes."""
    row_digits: int
    """The number of digits of the row in a key; 0 if the shard has no images."""


def find_exclusions(run: Run, clean: CleanSettings, rules: Filters) -> tuple[dict[int, str], list[str]]:
    """Find the images to leave out because of other images, once for each state of images and settings.

    Args:
        run: The run.
        clean: The manifest's settings. If they compare no images, there are no exclusions.
        rules: The filters that decide which images take part.

    Returns:
        The name of the list of excluded images by shard (see `read_list`), and the shards that could not be surveyed,
        each with its reason. If there are any of these, there are no lists.
    """
    if not clean.compares_images:
        return {}, []
    sets = clean.evaluation_sets
    evaluation_id = decontamination.evaluation_images(run, sets).id if sets else None
    stamps = image_stamps(run)
    settings = clean.model_dump(mode="json", exclude={"drop_flags", "evaluation_sets", "scores"})
    index = run.exclusion_index(digest(settings, evaluation_id, sorted(stamps.items())))
    if not storage.exists(index):
        survey = partial(survey_shard, run, clean, rules, evaluation_id)
        with scratch_folder("clean") as folder:
            lists, failed = _compare_shards(run, clean, survey, stamps, folder)
        if failed:
            return lists, failed
        storage.create(index, artifacts.encode_json(lists))
    remedy = "Remove it and run `lotlip-data shard`, which writes it again."
    return dict(artifacts.read_json(index, remedy, dict[int, str])), []


def read_list(run: Run, name: str) -> dict[int, Exclusion]:
    """Return the excluded images of one shard by their row, from a list that `find_exclusions` names."""
    remedy = f"Remove it and {run.exclusion_index('*')}; `lotlip-data shard` makes them again."
    table = artifacts.read_parquet(run.exclusion_list(name), remedy)
    columns = (table[column].to_pylist() for column in _EXCLUSIONS.names)
    return {row: Exclusion(*exclusion) for row, *exclusion in zip(*columns, strict=True)}


def survey_shard(
    run: Run, clean: CleanSettings, rules: Filters, evaluation_id: str | None, task: tuple[int, str]
) -> ShardSurvey:
    """Survey one shard. Needs no Ray.

    Args:
        run: The run.
        clean: The manifest's settings.
        rules: The filters that decide which images take part.
        evaluation_id: Identifies the images of the evaluation sets; None if there are no sets.
        task: The number of the shard, and the stamp of its images.
    """
    shard, stamp = task
    images = [image for image in _read_images(run, shard) if _passes(image, rules)]
    rows = [int(image["key"][len(shard_name(shard)) :]) for image in images]
    positions = _positions(shard, rows)
    hash_by_uid = shard_hashes(run, shard, stamp) if images and clean.looks_at_pixels else {}
    hashes = [hash_by_uid.get(image["uid"]) for image in images]
    is_hashed = np.array([value is not None for value in hashes], bool)
    upper, lower = (
        np.array([int(image["sha256"][start : start + 16], 16) for image in images], np.uint64) for start in (0, 16)
    )
    return ShardSurvey(
        positions=positions,
        upper=upper,
        lower=lower,
        hashed=positions[is_hashed],
        hashes=np.array([value for value in hashes if value is not None], np.uint64),
        precedence=_precedence(clean, images)[is_hashed],
        evaluation=_evaluation_images(run, clean, evaluation_id, images, rows, hashes),
        row_digits=len(images[0]["key"]) - len(shard_name(shard)) if images else 0,
    )


def _read_images(run: Run, shard: int) -> list[dict[str, Any]]:
    marker = ledger.read_image_stats(run, shard)
    if not marker["successes"]:
        return []
    return [row for row in fetched_rows(run, shard, marker, _COLUMNS).to_pylist() if row["status"] == SUCCESS]


def _passes(image: dict[str, Any], rules: Filters) -> bool:
    return not (image_rejection(image, rules) or raw_texts(image["texts"], image["sources"], rules).reason)


def _positions(shard: int, rows: list[int]) -> np.ndarray:
    return (np.uint64(shard) << np.uint64(_ROW_BITS)) | np.array(rows, np.uint64)


def _precedence(clean: CleanSettings, images: list[dict[str, Any]]) -> np.ndarray:
    """Return uint64 [n]: lower for images with more pixels as downloaded; equal for all if the first image stays."""
    if clean.keep == "first":
        return np.zeros(len(images), np.uint64)
    pixels = np.array([image["original_width"] * image["original_height"] for image in images], np.uint64)
    return np.iinfo(np.uint64).max - pixels


def _evaluation_images(
    run: Run,
    clean: CleanSettings,
    evaluation_id: str | None,
    images: list[dict[str, Any]],
    rows: list[int],
    hashes: list[int | None],
) -> list[tuple[int, str, int]]:
    """Row, name and distance of each image that an evaluation set contains. Equal bytes go before a near hash."""
    if evaluation_id is None:
        return []
    known = decontamination.read_evaluation_hashes(run, evaluation_id)
    hashed_rows = [row for row, value in zip(rows, hashes, strict=True) if value is not None]
    values = np.array([value for value in hashes if value is not None], np.uint64)
    near = find_near(values, known.hashes, clean.evaluation_distance)
    by_row = {
        hashed_rows[index]: (known.hashed_names[other], int(values[index] ^ known.hashes[other]).bit_count())
        for index, other in near
    }
    names = (known.find_sha256(image["sha256"]) for image in images)
    by_row |= {row: (name, 0) for row, name in zip(rows, names, strict=True) if name is not None}
    return sorted((row, *entry) for row, entry in by_row.items())


def _compare_shards(
    run: Run,
    clean: CleanSettings,
    survey: "partial[ShardSurvey]",
    stamps: dict[int, str],
    folder: Path,
) -> tuple[dict[int, str], list[str]]:
    """Survey all shards, compare their images, and commit the lists. Returns what `find_exclusions` returns."""
    rows = fetched_images(run, stamps)
    comparison = _Comparison(
        SpilledRows(folder / "digests", rows, "lower", "position"),
        SpilledRows(folder / "hashes", rows, "hash", "precedence", "position"),
        _ExclusionLists(run, folder / "lists", max(stamps, default=0), rows),
    )
    tasks = sorted((shard, digest(stamp)) for shard, stamp in stamps.items())
    failed = []
    with progress_bar("compare images", len(tasks), "shard") as bar:
        for (shard, _), result in run_ray_tasks(survey, tasks, name="compare images"):
            if isinstance(result, ShardSurvey):
                comparison.add(shard, result)
            else:
                failed.append(f"shard {shard_name(shard)} could not be surveyed: {one_line(result)}")
                logger.warning(failed[-1])
            bar.update()
    if failed:  # their images might go before any other
        return {}, failed
    for reason, duplicates in comparison.duplicates(clean, folder / "near"):
        comparison.lists.add_duplicates(reason, *duplicates)
    lists = comparison.lists.commit()
    counts = ", ".join(f"{count:,} {reason}" for reason, count in comparison.lists.counts.items())
    logger.info(f"compared {wording.count(rows, 'image')}; to be left out: {counts or 'none'}")
    return lists, []


@dataclass
class _Comparison:
    """The numbers of all shards, on disk."""

    digests: SpilledRows
    hashes: SpilledRows
    lists: "_ExclusionLists"

    def add(self, shard: int, survey: ShardSurvey) -> None:
        self.digests.add(survey.upper, survey.lower, survey.positions)
        self.hashes.add(spread(survey.hashes), survey.hashes, survey.precedence, survey.hashed)
        self.lists.add_evaluation_images(shard, survey)

    def duplicates(self, clean: CleanSettings, folder: Path) -> Iterator[tuple[str, Duplicates]]:
        """The duplicates that the settings leave out, in parts, each with its reason. `folder`: for scratch files."""
        if clean.duplicates:
            for part in near_duplicates.exact_duplicates(self.digests):
                yield DUPLICATE, part
        if clean.near_duplicates is not None:
            folder.mkdir()
            for part in near_duplicates.near_duplicates(self.hashes, clean.near_duplicates, folder):
                yield NEAR_DUPLICATE, part


class _ExclusionLists:
    """The excluded images, spilled by shard, and committed as one list per shard that is named by its content."""

    def __init__(self, run: Run, folder: Path, last_shard: int, rows: int) -> None:
        self._run, self._row_digits = run, 0
        self.counts: Counter[str] = Counter()
        """Excluded images by reason."""
        self._scale = np.uint64((1 << _ROW_BITS) // (last_shard + 1))
        """Spreads the numbers of the shards over 32 bits, so that they fill the buckets evenly."""
        self._rows = SpilledRows(folder, rows, "position", "reason", "of", "distance")
        self._evaluation = folder / "evaluation"
        self._evaluation.mkdir()

    def add_evaluation_images(self, shard: int, survey: ShardSurvey) -> None:
        self._row_digits = max(self._row_digits, survey.row_digits)
        if survey.evaluation:
            (self._evaluation / shard_name(shard)).write_text(json.dumps(survey.evaluation))
            positions = _positions(shard, [row for row, _, _ in survey.evaluation])
            distances = np.array([distance for _, _, distance in survey.evaluation], np.uint64)
            self._add(positions, _EVALUATION_NUMBER, positions, distances)

    def add_duplicates(self, reason: str, positions: np.ndarray, of: np.ndarray, distances: np.ndarray) -> None:
        self._add(positions, _REASONS.index(reason), of, distances)

    def _add(self, positions: np.ndarray, reason: int, of: np.ndarray, distances: np.ndarray) -> None:
        shards = positions >> np.uint64(_ROW_BITS)
        order = (shards * self._scale) << np.uint64(_ROW_BITS)
        self._rows.add(order, positions, np.full(len(positions), reason, np.uint64), of, distances)

    def commit(self) -> dict[int, str]:
        """Commit the lists. Returns their names by shard."""
        lists = {}
        for _, positions, *columns in self._rows:
            reasons = columns[0]
            order = np.lexsort((reasons, positions))
            shard_of_row = (positions[order] >> np.uint64(_ROW_BITS)).astype(np.int64)
            shards, starts = np.unique(shard_of_row, return_index=True)
            for shard, part in zip(shards.tolist(), np.split(order, starts[1:]), strict=True):
                lists[shard] = self._commit(shard, positions[part].tolist(), *(each[part].tolist() for each in columns))
        return lists

    def _commit(self, shard: int, positions: list[int], reasons: list[int], of: list[int], distances: list[int]) -> str:
        """Commit the list of one shard, whose positions are sorted, reasons of one position by precedence."""
        path = self._evaluation / shard_name(shard)
        name_by_row = {row: name for row, name, _ in json.loads(path.read_text())} if path.exists() else {}
        rows: dict[int, Exclusion] = {}
        for position, reason, other, distance in zip(positions, reasons, of, distances, strict=True):
            row = position & _ROW_MASK
            if reason == _EVALUATION_NUMBER:  # goes before the other reasons
                rows[row] = Exclusion(EVALUATION_IMAGE, name_by_row[row], distance)
            else:
                rows.setdefault(row, Exclusion(_REASONS[reason], self._key(other), distance))
        self.counts.update(exclusion.reason for exclusion in rows.values())
        name = f"{shard_name(shard)}-{digest(sorted(rows.items()))}.parquet"
        storage.create(self._run.exclusion_list(name), _encode(rows))
        return name

    def _key(self, position: int) -> str:
        return f"{shard_name(position >> _ROW_BITS)}{position & _ROW_MASK:0{self._row_digits}d}"


def _encode(rows: dict[int, Exclusion]) -> bytes:
    """The Parquet file of a list of excluded images."""
    entries = [{"row": row, **exclusion._asdict()} for row, exclusion in sorted(rows.items())]
    return artifacts.encode_parquet(pa.Table.from_pylist(entries, schema=_EXCLUSIONS))
