"""Scores one shard: what the score stage runs on Ray, and what it commits.

A scorer gets the images of a shard in the order of their tar, and gives as many scores. A scorer that compares shards
first surveys each, and then gives each its numbers: the survey says in which order the images were.
"""

import functools
import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.formats import score_file
from lotlip_data.manifests.formats.schema import SUCCESS
from lotlip_data.manifests.formats.score_file import RAW, SCORES, ScorerRecord
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.scores import ScorerEntry
from lotlip_data.manifests.subcaptions import split
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.core.ray_tasks import assigned_device, device_failures
from lotlip_data.pipeline.dataset.stage import read_captions
from lotlip_data.pipeline.downloading.reader import fetched_images, fetched_rows, rows_with_image
from lotlip_data.pipeline.scoring.base import (
    DatasetScorer,
    ImageScores,
    ImageText,
    ScoredImage,
    Scorer,
    ShardScorer,
    TextScore,
)
from lotlip_data.pipeline.scoring.image_features import FeatureStore, UsesImageFeatures
from lotlip_data.pipeline.scoring.registry import load_scorer

_UIDS = b"uids"
"""The metadata of a survey with the uids of its images, in the order in which the scorer got them."""


class AssignTask(NamedTuple):
    """A shard that gets its numbers."""

    shard: int
    file: str
    """The name of the file of its scores."""
    survey: str
    """The name of the file of its survey."""
    numbers: np.ndarray
    """A number for each row of the survey."""


@dataclass(frozen=True)
class ScoredShard:
    """What was committed of one shard."""

    images: int
    without: Counter[str]
    """Images without scores, by reason."""


def score_shard(run: Run, entry: ScorerEntry, record: ScorerRecord, task: tuple[int, str]) -> ScoredShard:
    """Score and commit one shard.

    Args:
        run: The run.
        entry: The scorer.
        record: What is committed beside its scores.
        task: The shard, and the name of the file of its scores.
    """
    shard, file = task
    started = time.time()
    with _scorer_of_task(entry) as scorer:
        reads_images = scorer.reads_images
        if isinstance(scorer, UsesImageFeatures):
            scorer.features = FeatureStore(run, shard)
            reads_images = not scorer.features.has_all(scorer.image_identity, _sha256_of_images(run, shard))
        images = iter_images(run, record, shard, reads_images)
        scored = _scored(images, cast(ShardScorer, scorer).score, record.scores_texts)
        committed = _commit(run, entry.label, shard, file, scored, started)
        if isinstance(scorer, UsesImageFeatures):
            scorer.features.save()
        return committed


def survey_shard(run: Run, entry: ScorerEntry, record: ScorerRecord, task: tuple[int, str]) -> None:
    """Survey one shard for a scorer that compares shards, and store the result.

    Args:
        run: The run.
        entry: The scorer.
        record: What is committed beside its scores.
        task: The shard, and the name of the file without the number of its rows.
    """
    shard, stem = task
    uids: list[str] = []

    def images(scorer: Scorer) -> Iterator[ScoredImage]:
        for image in iter_images(run, record, shard, scorer.reads_images):
            uids.append(image.uid)
            yield image

    with _scorer_of_task(entry) as scorer:
        survey = cast(DatasetScorer, scorer).survey(images(scorer))
    columns = {str(index): pa.array(column, pa.uint64()) for index, column in enumerate(survey.columns)}
    table = pa.table(columns).replace_schema_metadata({_UIDS: " ".join(uids)})
    file = f"{stem}-{table.num_rows}{score_file.ENDING}"
    storage.create(run.score_survey(entry.label, file), artifacts.encode_parquet(table))


def read_survey(run: Run, name: str, file: str) -> pa.Table:
    url = run.score_survey(name, file)
    return artifacts.read_parquet(url, score_file.remedy(url))


def assign_shard(run: Run, entry: ScorerEntry, record: ScorerRecord, task: AssignTask) -> ScoredShard:
    """Commit the scores of one shard from its numbers. No image is read: the survey says in which order they were.

    Args:
        run: The run.
        entry: The scorer, which compares shards.
        record: What is committed beside its scores.
        task: The shard.
    """
    started = time.time()
    survey = read_survey(run, entry.label, task.survey)
    by_uid = {image.uid: image for image in iter_images(run, record, task.shard, reads_images=False)}
    images = (by_uid[uid] for uid in survey.schema.metadata[_UIDS].decode().split())
    with _scorer_of_task(entry) as scorer:
        assign = functools.partial(cast(DatasetScorer, scorer).assign, numbers=task.numbers.tolist())
        scored = _scored(images, assign, record.scores_texts)
        return _commit(run, entry.label, task.shard, task.file, scored, started)


def iter_images(run: Run, record: ScorerRecord, shard: int, reads_images: bool) -> Iterator[ScoredImage]:
    """The images of a shard with their texts.

    Args:
        run: The run.
        record: The scorer, with the captioners whose texts it scores.
        shard: The number of the shard.
        reads_images: Whether the image files are needed.
    """
    captions = {name: read_captions(run, name, shard) for name in record.captioners}
    for meta, content in _fetched(run, shard, reads_images):
        texts = [ImageText(RAW, text or "") for text in meta["texts"]]
        for name, of_captioner in captions.items():
            taken = of_captioner.take(meta)
            if taken.text is not None and taken.outdated is None:
                texts.append(ImageText(name, taken.text, tuple(split(taken.text, record.sub_captions))))
        yield ScoredImage(meta["uid"], meta["sha256"], content, tuple(texts), meta["url"] or "")


def _sha256_of_images(run: Run, shard: int) -> list[str]:
    rows = fetched_rows(run, shard, ledger.read_image_stats(run, shard), ["sha256", "status"])
    names: list[str] = rows.filter(pc.equal(rows["status"], SUCCESS))["sha256"].to_pylist()
    return names


def _fetched(run: Run, shard: int, reads_images: bool) -> Iterator[tuple[Mapping[str, Any], bytes]]:
    if reads_images:
        for image in fetched_images(run, shard):
            yield image.meta, image.image
        return
    yield from ((row, b"") for row in rows_with_image(run, shard, ledger.read_image_stats(run, shard)))


def _scored(
    images: Iterable[ScoredImage], scores: Callable[[Iterable[ScoredImage]], Iterator[ImageScores]], of_texts: bool
) -> Iterator[tuple[ScoredImage, ImageScores]]:
    """The images with their scores. Raises ValueError if a scorer does not give as many as it should."""
    waiting: deque[ScoredImage] = deque()

    def read() -> Iterator[ScoredImage]:
        for image in images:
            waiting.append(replace(image, content=b""))
            yield image

    left = read()
    for of_image in scores(left):
        if not waiting:
            raise ValueError("the scorer gave more scores than there are images")
        image = waiting.popleft()
        yield image, _checked(image, of_image, of_texts)
    if waiting or next(left, None) is not None:
        raise ValueError("the scorer gave fewer scores than there are images")


def _checked(image: ScoredImage, scores: ImageScores, of_texts: bool) -> ImageScores:
    """The scores of an image as they are stored: null for each text of an image without scores."""
    if scores.error is None and of_texts:
        counts = [len(text.pieces) for text in scores.texts]
        if counts != [len(text.pieces) for text in image.texts]:
            raise ValueError(f"the scorer gave scores of other texts or sub-captions than image {image.uid} has")
    if scores.error is None:
        values = [scores.image, *(value for text in scores.texts for value in (text.score, *text.pieces))]
        if all(value is None or math.isfinite(value) for value in values):
            return scores
        scores = ImageScores(error="a score is not a finite number")
    texts = tuple(TextScore(None, (None,) * len(text.pieces)) for text in image.texts) if of_texts else ()
    return ImageScores(texts=texts, error=scores.error)


def _commit(
    run: Run, name: str, shard: int, file: str, scored: Iterable[tuple[ScoredImage, ImageScores]], started: float
) -> ScoredShard:
    rows, without = [], Counter[str]()
    for image, scores in scored:
        texts = [
            {"name": text.name, "score": of_text.score, "pieces": list(of_text.pieces)}
            for text, of_text in zip(image.texts, scores.texts, strict=False)
        ]
        rows.append(
            {"uid": image.uid, "sha256": image.sha256, "image": scores.image, "texts": texts, "error": scores.error}
        )
        if scores.error is not None:
            without[scores.error] += 1
    rows.sort(key=lambda row: str(row["uid"]))  # the order of a tar is not that of its Parquet file
    table = pa.Table.from_pylist(rows, schema=SCORES)
    storage.create(run.score_file(name, file), artifacts.encode_parquet(table))
    ended = time.time()
    work = WorkRecord(len(rows), without.total(), 0, int(started), int(ended), spent=int(1000 * (ended - started)))
    ledger.record(run.score_ledger(name), shard, work)
    return ScoredShard(len(rows), without)


@contextmanager
def _scorer_of_task(entry: ScorerEntry) -> Iterator[Scorer]:
    """The scorer of an entry, loaded once per process, on the device that Ray reserved for the task."""
    if not entry.model:
        yield _loaded(json.dumps(entry.explicit), None)
        return
    device = assigned_device(f"scorer {entry.label}")
    with device_failures(f"scorer {entry.label}"):
        yield _loaded(json.dumps(entry.explicit), device)


@functools.lru_cache(maxsize=1)
def _loaded(entry: str, device: str | None) -> Scorer:
    return load_scorer(ScorerEntry.parse(json.loads(entry)), device)
