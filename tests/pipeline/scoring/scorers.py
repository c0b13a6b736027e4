"""Scorers that need no model, for tests, and their tasks in this process."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.base import Settings
from lotlip_data.manifests.settings.scores import ScorerEntry
from lotlip_data.pipeline.dataset import score_limits
from lotlip_data.pipeline.dataset import stage as dataset_stage
from lotlip_data.pipeline.scoring import registry, shards, stage
from lotlip_data.pipeline.scoring.base import ImageScores, ScoredImage, Survey, TextScore


class NoSettings(Settings):
    """No settings."""


class WordCount:
    """The number of words of a text; the image without a text by `llava` has no scores."""

    scores: ClassVar[Literal["texts", "images"]] = "texts"
    reads_images = False
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    settings_type = NoSettings

    def __init__(self, version: int = 1) -> None:
        self.identity = {"version": version}

    def score(self, images: Iterable[ScoredImage]) -> Iterator[ImageScores]:
        for image in images:
            texts = [TextScore(words(text.text), tuple(map(words, text.pieces))) for text in image.texts]
            yield ImageScores(texts=tuple(texts))


class FileSize:
    """The bytes of the image file, modulo 100; odd numbers are errors."""

    scores: ClassVar[Literal["texts", "images"]] = "images"
    reads_images = True
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    settings_type = NoSettings
    identity: ClassVar[dict[str, Any]] = {}

    def score(self, images: Iterable[ScoredImage]) -> Iterator[ImageScores]:
        for image in images:
            size = len(image.content) % 100
            yield ImageScores(error="odd") if size % 2 else ImageScores(image=float(size))


class Rank:
    """The place of an image's uid among those of all images."""

    scores: ClassVar[Literal["texts", "images"]] = "images"
    reads_images = False
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    settings_type = NoSettings
    identity: ClassVar[dict[str, Any]] = {}

    def survey(self, images: Iterable[ScoredImage]) -> Survey:
        return Survey((np.array([int(image.uid[:12], 16) for image in images], np.uint64),))

    def combine(
        self, surveys: Iterable[tuple[int, Survey]], rows: int, folder: Path
    ) -> Iterator[tuple[int, np.ndarray]]:
        by_shard = {shard: survey.columns[0] for shard, survey in surveys}
        everything = np.sort(np.concatenate(list(by_shard.values())))
        assert len(everything) == rows and list(folder.iterdir()) == []
        for shard, values in by_shard.items():
            yield shard, np.searchsorted(everything, values).astype(np.float64)

    def assign(self, images: Iterable[ScoredImage], numbers: Sequence[float]) -> Iterator[ImageScores]:
        for _, number in zip(images, numbers, strict=True):
            yield ImageScores(image=number)


SCORERS: dict[str, Callable[[], Any]] = {"words": WordCount, "bytes": FileSize, "rank": Rank}


def words(text: str) -> float:
    return float(len(text.split()))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run in this process, so that a test can stop it at any step. An error of a task is its result."""

    def run_tasks(
        task: Callable[[Any], Any], items: Iterable[Any], name: str, num_gpus: float = 0
    ) -> Iterator[tuple[Any, Any]]:
        for item in items:
            try:
                yield item, task(item)
            except (UserError, ValueError) as error:
                yield item, error

    def load(entry: ScorerEntry, device: str | None = None) -> Any:
        return SCORERS[entry.kind]()

    for module in (stage, shards):
        monkeypatch.setattr(module, "load_scorer", load)
    monkeypatch.setattr(stage, "cluster", nullcontext)
    monkeypatch.setattr(stage, "cpus_per_gpu", lambda: None)
    for module in (stage, score_limits, dataset_stage):
        monkeypatch.setattr(module, "run_ray_tasks", run_tasks)
    shards._loaded.cache_clear()


def use_real_scorers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the scorers that entries name, instead of SCORERS; models compute on the CPU."""
    for module in (stage, shards):
        monkeypatch.setattr(module, "load_scorer", registry.load_scorer)
    monkeypatch.setattr(shards, "assigned_device", lambda user: "cpu")
    shards._loaded.cache_clear()
