"""Images that are left out for the sake of others: duplicates within the run, and what evaluation sets hold.

Every shard is surveyed by itself, on Ray: its images are hashed (once; the hashes are committed), held against the
evaluation sets, and handed on as a few numbers each. Here those are spilled to disk, merged a bucket at a time, and
become one list a shard of what is to be left out. Only images that the rules on size and raw texts let pass take part,
so an image is never left out for the sake of one that is left out by those.

Everything in RUN/clean follows from the images and the settings, and can be removed at any time.
"""

import io
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.artifacts import digest
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.schema import SUCCESS
from lotlip_data.manifests.settings import CleanSettings
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import fetched_images, image_stamps
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.core.ray_tasks import run_ray_tasks
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.curation import decontamination, near_duplicates
from lotlip_data.pipeline.curation.filters import Filters, image_rejection, raw_texts
from lotlip_data.pipeline.curation.near_duplicates import Found, Rows
from lotlip_data.pipeline.curation.perceptual_hash import is_within_distance, shard_hashes
from lotlip_data.pipeline.downloading.reader import fetched_rows

logger = logging.getLogger(__name__)

DUPLICATE, NEAR_DUPLICATE, EVALUATION_IMAGE = "duplicate", "near_duplicate", "evaluation_image"
_REASONS = (DUPLICATE, NEAR_DUPLICATE)
_LIST = pa.schema([("row", pa.uint32()), ("reason", pa.string()), ("of", pa.string())])
_COLUMNS = ["key", "uid", "sha256", "status", "texts", "sources", "original_width", "original_height"]
_ROW_BITS = 32


@dataclass(frozen=True)
class ShardSurvey:
    """What one shard contributes, n images: all arrays are uint64 of n, but for those of hashes, which are of h ≤ n."""

    positions: np.ndarray
    """shard · 2³² + row: the order in which images are earlier or later."""
    upper: np.ndarray
    lower: np.ndarray
    """The first 128 bits of the sha256."""
    hashed: np.ndarray
    """Positions of those that have a perceptual hash."""
    hashes: np.ndarray
    evaluation: list[tuple[int, str]]
    """Row and name: images that an evaluation set holds."""
    digits: int
    """Of the row in a key."""


def find_exclusions(run: Run, clean: CleanSettings, rules: Filters) -> tuple[dict[int, str], list[str]]:
    """By shard, the list in `clean/` of the images to leave out, and what could not be surveyed, each with its reason.

    Made once for each state of images and settings; empty where `clean` compares no images.
    """
    if not clean.compares_images:
        return {}, []
    sets = clean.evaluation_sets
    known = decontamination.evaluation_images(run, sets).id if sets else None
    stamps = image_stamps(run)
    settings = clean.model_dump(mode="json", exclude={"drop_flags", "evaluation_sets"})
    index = run.clean(f"left-out-{digest(settings, known, sorted(stamps.items()))}.json")
    if not storage.exists(index):
        with scratch_folder("clean") as folder:
            lists, failed = _merge(run, clean, rules, known, stamps, folder)
        if failed:
            return lists, failed
        storage.create(index, json.dumps(lists).encode())
    listed = artifacts.read_json(index, "Remove it, and `lotlip-data shard` looks again.")
    return {int(shard): name for shard, name in listed.items()}, []


def read_list(run: Run, name: str) -> dict[int, tuple[str, str]]:
    """By row of the shard, the reason to leave an image out, and the key or name of the one that it is like."""
    remedy = f"Remove it and {run.clean('left-out-*.json')}; `lotlip-data shard` makes them again."
    table = artifacts.read_parquet(run.clean("left_out", name), remedy)
    rows, reasons, of = (table[column].to_pylist() for column in _LIST.names)
    return {row: (reason, other) for row, reason, other in zip(rows, reasons, of, strict=True)}


def survey_shard(
    run: Run, clean: CleanSettings, rules: Filters, known: str | None, unit: tuple[int, str]
) -> ShardSurvey:
    """Look at one shard, given with the stamp of its images; `known` are the evaluation sets. Needs no Ray."""
    shard, stamp = unit
    images = [image for image in _fetched(run, shard) if _passes(image, rules)]
    rows = [int(image["key"][len(shard_name(shard)) :]) for image in images]
    positions = (np.uint64(shard) << np.uint64(_ROW_BITS)) | np.array(rows, np.uint64)
    by_uid = shard_hashes(run, shard, stamp) if images and clean.looks_at_pixels else {}
    found = [by_uid.get(image["uid"]) for image in images]
    has_hash = np.array([value is not None for value in found], bool)
    hashes = np.array([value for value in found if value is not None], np.uint64)
    evaluation: dict[int, str] = {}
    if known is not None:
        evaluated = decontamination.read_evaluation_hashes(run, known)
        hashed_rows = [row for row, value in zip(rows, found, strict=True) if value is not None]
        near = is_within_distance(hashes, evaluated.hashes, clean.evaluation_distance)
        evaluation = {hashed_rows[mine]: evaluated.hashed_names[other] for mine, other in near}
        of_bytes = ((row, evaluated.of_bytes(image["sha256"])) for row, image in zip(rows, images, strict=True))
        evaluation |= {row: name for row, name in of_bytes if name is not None}
    upper, lower = (np.array([int(image["sha256"][at : at + 16], 16) for image in images], np.uint64) for at in (0, 16))
    digits = len(images[0]["key"]) - len(shard_name(shard)) if images else 0
    return ShardSurvey(positions, upper, lower, positions[has_hash], hashes, sorted(evaluation.items()), digits)


def _fetched(run: Run, shard: int) -> list[dict[str, Any]]:
    marker = ledger.read_image_stats(run, shard)
    if not marker["successes"]:
        return []
    return [row for row in fetched_rows(run, shard, marker, _COLUMNS).to_pylist() if row["status"] == SUCCESS]


def _passes(image: dict[str, Any], rules: Filters) -> bool:
    return not (image_rejection(image, rules) or raw_texts(image["texts"], image["sources"], rules).reason)


def _merge(
    run: Run, clean: CleanSettings, rules: Filters, known: str | None, stamps: dict[int, str], folder: pathlib.Path,
    
) -> tuple[dict[int, str], list[str]]:  # fmt: skip
    rows = fetched_images(run, stamps)
    spilled = _Spilled(
        Rows(folder / "sums", rows, "lower", "position"),
        Rows(folder / "hashes", rows, "hash", "position"),
        _Lists(run, folder / "lists", max(stamps, default=0), rows),
    )
    units = sorted((shard, digest(stamp)) for shard, stamp in stamps.items())
    failed = []
    for (shard, _), seen in run_ray_tasks(partial(survey_shard, run, clean, rules, known), units):
        if isinstance(seen, ShardSurvey):
            spilled.add(shard, seen)
        else:
            failed.append(f"shard {shard_name(shard)} could not be surveyed: {one_line(seen)}")
            logger.warning(failed[-1])
    if failed:  # what they hold might be earlier than anything
        return {}, failed
    found: list[tuple[str, Iterator[Found]]] = []
    if clean.duplicates:
        found.append((DUPLICATE, near_duplicates.exact_duplicates(spilled.sums)))
    if clean.near_duplicates is not None:
        (folder / "near").mkdir()
        found.append(
            (NEAR_DUPLICATE, near_duplicates.near_duplicates(spilled.hashes, clean.near_duplicates, folder / "near"))
        )
    for reason, parts in found:
        for late, earlier in parts:
            spilled.lists.duplicates(reason, late, earlier)
    lists = spilled.lists.commit()
    counts = ", ".join(f"{count:,} {reason}" for reason, count in spilled.lists.counts.items())
    logger.info(f"compared {rows:,} images; to be left out: {counts or 'none'}")
    return lists, []


@dataclass
class _Spilled:
    """What the surveys found, on disk."""

    sums: Rows
    hashes: Rows
    lists: "_Lists"

    def add(self, shard: int, seen: ShardSurvey) -> None:
        self.sums.add(seen.upper, seen.lower, seen.positions)
        self.hashes.add(near_duplicates.mixed(seen.hashes), seen.hashes, seen.hashed)
        self.lists.evaluation(shard, seen)


class _Lists:
    """What is to be left out, spilled by shard, and committed as one list a shard, named by its content."""

    def __init__(self, run: Run, folder: pathlib.Path, last: int, rows: int) -> None:
        self._run, self._digits = run, 0
        self.counts: Counter[str] = Counter()
        """Images by the reason that counts."""
        self._scale = np.uint64((1 << _ROW_BITS) // (last + 1))
        """Spreads the shards' numbers over 32 bits, which is what buckets are cut by."""
        self._rows = Rows(folder, rows, "position", "reason", "of")
        self._named = folder / "evaluation"
        self._named.mkdir()

    def evaluation(self, shard: int, seen: ShardSurvey) -> None:
        self._digits = max(self._digits, seen.digits)
        if seen.evaluation:
            (self._named / shard_name(shard)).write_text(json.dumps(seen.evaluation))
            rows = np.array([row for row, _ in seen.evaluation], np.uint64)
            positions = (np.uint64(shard) << np.uint64(_ROW_BITS)) | rows
            self._add(positions, len(_REASONS), positions)

    def duplicates(self, reason: str, late: np.ndarray, earlier: np.ndarray) -> None:
        self._add(late, _REASONS.index(reason), earlier)

    def _add(self, positions: np.ndarray, reason: int, of: np.ndarray) -> None:
        shards = positions >> np.uint64(_ROW_BITS)
        order = (shards * self._scale) << np.uint64(_ROW_BITS)
        self._rows.add(order, positions, np.full(len(positions), reason, np.uint64), of)

    def commit(self) -> dict[int, str]:
        """By shard, the name of its list."""
        lists = {}
        for _, positions, reasons, of in self._rows:
            order = np.lexsort((reasons, positions))
            shards = (positions[order] >> np.uint64(_ROW_BITS)).astype(np.int64)
            found, starts = np.unique(shards, return_index=True)
            for shard, part in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
                lists[shard] = self._commit(shard, positions[part], reasons[part], of[part])
        return lists

    def _commit(self, shard: int, positions: np.ndarray, reasons: np.ndarray, of: np.ndarray) -> str:
        path = self._named / shard_name(shard)
        named = dict(json.loads(path.read_text())) if path.exists() else {}
        rows: dict[int, tuple[str, str]] = {}
        for position, reason, other in zip(positions.tolist(), reasons.tolist(), of.tolist(), strict=True):
            row = position & 0xFFFFFFFF
            if reason == len(_REASONS):
                rows[row] = EVALUATION_IMAGE, named[row]
            else:  # in the order of the reasons: equal bytes say more than like looks
                rows.setdefault(row, (_REASONS[reason], self._key(other)))
        self.counts.update(reason for reason, _ in rows.values())
        name = f"{shard_name(shard)}-{digest(sorted(rows.items()))}.parquet"
        storage.create(self._run.clean("left_out", name), _table(rows))
        return name

    def _key(self, position: int) -> str:
        return f"{shard_name(position >> _ROW_BITS)}{position & 0xFFFFFFFF:0{self._digits}d}"


def _table(rows: dict[int, tuple[str, str]]) -> bytes:
    found = [{"row": row, "reason": reason, "of": of} for row, (reason, of) in sorted(rows.items())]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(found, schema=_LIST), buffer)
    return buffer.getvalue()
