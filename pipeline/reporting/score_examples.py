"""What the report shows of scores besides numbers: the best and the worst texts with their images, and boilerplate.

Two passes: the first one keeps the places of the lowest and the highest scores of each column, a bounded number of
them; the second one reads these samples. Texts come from the web.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index, schema, score_file
from lotlip_data.manifests.formats.dataset_index import DatasetError, ShardFile
from lotlip_data.manifests.formats.schema import SCORE, SUB_SUFFIX, piece_scores_column, text_score_column
from lotlip_data.manifests.formats.score_file import FrequentText
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.calibration import better_scores
from lotlip_data.pipeline.dataset.score_stats import score_title
from lotlip_data.pipeline.dataset.tar_images import TarImages
from lotlip_data.pipeline.reporting.pictures import make_thumbnail, read_rows, shortened

EXAMPLES = 3
"""The best and as many of the worst of each list."""
CANDIDATES = 24
"""Places kept of each list, so that texts that repeat another one can be passed over."""
FREQUENT = 20
"""Most frequent sub-captions shown."""
BATCH_ROWS = 1000
TEXT_CHARACTERS = 320
THUMBNAIL_SIDE, THUMBNAIL_BYTES = 128, 8_000

Place = tuple[int, int, int]
"""A file, a row of it, and of a list the item."""


@dataclass(frozen=True)
class ScoredExample:
    """A text, or an image alone, with its score."""

    score: float
    uid: str
    text: str
    data_url: str
    """Empty if the image cannot be shown."""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class ExampleList:
    """The best and the worst of one kind."""

    title: str
    what: str
    """The score that they are ordered by."""
    best: list[ScoredExample]
    worst: list[ScoredExample]
    labels: tuple[str, str] = ("best", "worst")


@dataclass
class ScoreExamples:
    """The examples of a dataset with scores."""

    captioners: dict[str, list[ExampleList]] = field(default_factory=dict)
    images: list[ExampleList] = field(default_factory=list)
    frequent: dict[str, list[FrequentText]] = field(default_factory=dict)
    """By scorer that counts texts, the most frequent sub-captions, those included that the dataset leaves out."""
    problems: list[str] = field(default_factory=list)
    """Files that cannot be read, each with its remedy."""


class Extremes:
    """The places of the CANDIDATES lowest and highest scores of a column. Of equal scores, the first ones count."""

    def __init__(self) -> None:
        self._ends: dict[bool, tuple[np.ndarray, np.ndarray]] = {
            highest: (np.zeros(0), np.zeros((0, 3), np.int64)) for highest in (False, True)
        }

    def add(self, scores: np.ndarray, places: np.ndarray) -> None:
        """Take scores, float [n], nan for none, and their places, int [n, 3]."""
        known = np.isfinite(scores)
        for highest, (kept, kept_places) in self._ends.items():
            signed = -scores[known] if highest else scores[known]
            keys, all_places = np.concatenate([kept, signed]), np.concatenate([kept_places, places[known]])
            order = np.argsort(keys, kind="stable")[:CANDIDATES]
            self._ends[highest] = keys[order], all_places[order]

    def places(self, highest: bool) -> list[Place]:
        """The places, from the extreme one on."""
        return [(file, row, item) for file, row, item in self._ends[highest][1].tolist()]


def find_examples(run: Run) -> ScoreExamples:
    """The examples of the run's dataset; none of a dataset without scores.

    Raises DatasetError if dataset.json is damaged. A file that cannot be read is one of `problems`.
    """
    content = dataset_index.read_index(run)
    return _Finder(run, content).find() if content.get("scorers") else ScoreExamples()


class _Finder:
    """Finds the examples of a dataset with scores."""

    def __init__(self, run: Run, content: Mapping[str, Any]) -> None:
        scorers = schema.scorers_of(content)
        self._run, self._content, self._better = run, content, better_scores(run, content)
        self._files = dataset_index.shard_files(run, content)
        self._captioners = list(content["captioners"]) if "texts" in scorers.values() else []
        self._images = schema.scores_of_images(scorers)
        self._extremes: dict[str, Extremes] = {}
        self._remedy = f"`lotlip-data verify {run.url}` says what to do."
        self._reader = _ExampleReader(self._files)

    def find(self) -> ScoreExamples:
        problems: dict[str, None] = {}
        for number, file in enumerate(self._files):
            try:
                self._scan(number, file)
            except UserError as error:
                problems[str(error)] = None
        found = ScoreExamples()
        for name in self._content["scorers"]:
            try:
                summary = score_file.read_summary(self._run, name)
            except UserError as error:
                problems[str(error)] = None
                continue
            texts = [text for text in summary.frequent if text.role == "sub_caption"] if summary else []
            found.frequent |= {name: texts[:FREQUENT]} if texts else {}
        for name in self._captioners:
            columns = {
                "sub-captions": (piece_scores_column(name, SCORE), name + SUB_SUFFIX),
                "long texts": (text_score_column(name, SCORE), name),
            }
            lists = [self._list(title, score, text, SCORE) for title, (score, text) in columns.items()]
            found.captioners[name] = [each for each in lists if each.best]
        found.images = [each for name in self._images if (each := self._list("images", name, "", name)).best]
        found.problems = list(dict.fromkeys([*problems, *self._reader.problems]))
        return found

    def _scan(self, number: int, file: ShardFile) -> None:
        """Read the scores of a file."""
        columns = [piece_scores_column(name, SCORE) for name in self._captioners]
        columns += [text_score_column(name, SCORE) for name in self._captioners] + self._images
        digest, first = file.parquet.digest, 0
        batches = artifacts.iter_parquet(file.parquet_url, self._remedy, columns, BATCH_ROWS, DatasetError, digest)
        for batch in batches:
            for column in columns:
                self._extremes.setdefault(column, Extremes()).add(*_placed(batch[column], number, first))
            first += len(batch)

    def _list(self, title: str, score_column: str, text_column: str, score: str) -> ExampleList:
        """The examples of a column, by their score."""
        extremes, better = self._extremes.get(score_column, Extremes()), self._better.get(score)
        best_is_highest = better != "lower"
        labels = ("best", "worst") if better else ("highest", "lowest")
        seen: set[str] = set()  # of few samples, the best ones are not the worst ones too
        best, worst = (
            self._reader.read(extremes.places(highest), score_column, text_column, seen)
            for highest in (best_is_highest, not best_is_highest)
        )
        return ExampleList(title, score_title(score), best, worst, labels)


def _placed(column: pa.Array, file: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The scores of a column, float64 [n], and their places, int64 [n, 3]."""
    rows, items = np.arange(len(column)), np.zeros(len(column), np.int64)
    values = column
    if pa.types.is_list(column.type):
        rows, values = pc.list_parent_indices(column).to_numpy(zero_copy_only=False), pc.list_flatten(column)
        items = np.arange(len(rows)) - np.searchsorted(rows, rows)
    scores = np.asarray(pc.fill_null(pc.cast(values, pa.float64()), np.nan), np.float64)
    return scores, np.stack([np.full(len(rows), file), first + rows, items], axis=1).astype(np.int64)


class _ExampleReader:
    """Reads samples by their places. A picture that cannot be shown is left out."""

    def __init__(self, files: Sequence[ShardFile]) -> None:
        self._files = files
        self._tars = TarImages(open_tars=1)
        self._thumbnails: dict[tuple[int, int], tuple[str, int, int]] = {}
        self.problems: dict[str, None] = {}

    def read(self, places: Sequence[Place], score_column: str, text_column: str, seen: set[str]) -> list[ScoredExample]:
        """The first EXAMPLES of these places whose texts, or images, are not in `seen`, and add them to it."""
        examples: list[ScoredExample] = []
        for place, row in self._rows(places, [score_column, *([text_column] if text_column else [])]):
            value, text = row[score_column], row[text_column] if text_column else ""
            if isinstance(value, list):
                value, text = value[place[2]], text[place[2]]
            identity = (text or "").casefold() or row["uid"]
            if len(examples) < EXAMPLES and identity not in seen:
                seen.add(identity)
                picture = self._thumbnail(place[0], place[1])
                examples.append(ScoredExample(value, row["uid"], shortened(text or "", TEXT_CHARACTERS), *picture))
        return examples

    def _rows(self, places: Sequence[Place], columns: Sequence[str]) -> Iterator[tuple[Place, dict[str, Any]]]:
        """The columns of the samples at these places, in their order."""
        read: dict[tuple[int, int], dict[str, Any]] = {}
        for number in {file for file, _, _ in places}:
            wanted = sorted({row for file, row, _ in places if file == number})
            try:
                for row, content in read_rows(self._files[number], wanted, ["uid", *columns]):
                    read[number, row] = content
            except UserError as error:
                self.problems[str(error)] = None
        yield from ((place, read[place[:2]]) for place in places if place[:2] in read)

    def _thumbnail(self, file: int, row: int) -> tuple[str, int, int]:
        if (file, row) not in self._thumbnails:
            try:
                content = self._tars.image(self._files[file].tar_url, row)
                picture = make_thumbnail(content, THUMBNAIL_SIDE, THUMBNAIL_BYTES)
            except UserError as error:
                self.problems[str(error)], picture = None, ("", 0, 0)
            except ValueError as error:
                self.problems[f"{self._files[file].tar_url}: an image {error}"] = None
                picture = ("", 0, 0)
            self._thumbnails[file, row] = picture
        return self._thumbnails[file, row]
