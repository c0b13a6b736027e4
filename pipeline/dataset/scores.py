"""The scores of images and texts in the dataset: what the join takes of them, and what it leaves out because of them.

Scores are made by the score stage, one file per scorer and shard. The combined score of a text is the weighted mean of
its standardised scores: each scorer's, minus the mean and divided by the standard deviation over all texts of its
level. Scorers whose lower values are better count with a minus.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import score_file
from lotlip_data.manifests.formats.schema import SCORE, scores_of_texts
from lotlip_data.manifests.formats.score_file import RAW

Level = Literal["sub_captions", "texts", "raw", "samples"]
"""What has a score: a sub-caption, a long text, a raw text or an image."""

TEXT_LEVELS: tuple[Level, ...] = ("sub_captions", "texts", "raw")

NO_SUB_CAPTION = "no_sub_caption_left"
"""Reason to leave out a long text: all of its sub-captions are left out."""


@dataclass(frozen=True)
class Limit:
    """A rule of `clean.scores`, with numbers."""

    score: str
    of: Level
    minimum: float | None = None
    """Lower scores are left out."""
    maximum: float | None = None
    """Higher scores are left out."""

    def rejection(self, value: float | None) -> str | None:
        """Why something with this score is left out; None if it is not, or if it has no score."""
        if value is None:
            return None
        if self.minimum is not None and value < self.minimum:
            return f"{self.score}_too_low"
        if self.maximum is not None and value > self.maximum:
            return f"{self.score}_too_high"
        return None


@dataclass(frozen=True)
class Standard:
    """What the combined score needs of one scorer at one level."""

    mean: float
    deviation: float
    """The standard deviation; 0 if all scores are equal, which say nothing then."""
    weight: float
    """Negative if lower scores are better."""


@dataclass(frozen=True)
class ScorerInfo:
    """A scorer whose scores the dataset has."""

    id: str
    kind: str
    scores: Literal["texts", "images"]


@dataclass(frozen=True)
class ScoreRecipe:
    """Everything about scores that decides the bytes of a shard, except the scores themselves."""

    scorers: dict[str, ScorerInfo] = field(default_factory=dict)
    """By name, in the order of the columns."""
    standards: dict[str, dict[str, Standard]] = field(default_factory=dict)
    """By level and scorer."""
    limits: tuple[Limit, ...] = ()
    whole_texts: tuple[str, ...] = ()
    """Captioners whose texts stay whole, since they are JSON objects: no limit applies to their sub-captions."""

    @property
    def columns(self) -> dict[str, str]:
        """As `schema.Scorers`."""
        return {name: scorer.scores for name, scorer in self.scorers.items()}

    @property
    def of_texts(self) -> list[str]:
        """The scorers of texts."""
        return [name for name, scorer in self.scorers.items() if scorer.scores == "texts"]

    @property
    def names_of_texts(self) -> list[str]:
        """SCORE and the scorers of texts; empty without one."""
        return scores_of_texts(self.columns)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def combine(self, level: Level, scores: Mapping[str, float | None]) -> float | None:
        """The combined score of a text from its scores by scorer; None if it has none."""
        known = [
            (standard, value)
            for name, standard in self.standards.get(level, {}).items()
            if (value := scores.get(name)) is not None and standard.deviation
        ]
        total = sum(abs(standard.weight) for standard, _ in known)
        if not total:
            return None
        combined = sum(s.weight * (value - s.mean) / s.deviation for s, value in known) / total
        return float(np.float32(combined))  # as in the Parquet file, so that the tar's json has the same value

    def rejection(self, level: Level, scores: Mapping[str, float | None]) -> str | None:
        """Why something with these scores, the combined one among them, is left out; None if it is not."""
        limits = (limit for limit in self.limits if limit.of == level)
        return next((reason for limit in limits if (reason := limit.rejection(scores.get(limit.score)))), None)


NO_SCORES = ScoreRecipe()
"""The recipe of a dataset without scores."""

Scores = dict[str, float | None]
"""By scorer, and under SCORE for texts, the score of one thing."""


class TextScores(NamedTuple):
    """The scores of a text and of each of its sub-captions."""

    text: Scores
    pieces: list[Scores]


NO_TEXT = TextScores({}, [])
"""The scores where there is no text."""


class SampleScores:
    """The scores of one image and of its texts by all scorers.

    Args:
        recipe: The recipe.
        rows: By scorer, the row of the image in its file of scores.
        where: The image, for errors.
        files: By scorer, its file of scores, for errors.
    """

    def __init__(
        self, recipe: ScoreRecipe, rows: Mapping[str, Mapping[str, Any]], where: str, files: Mapping[str, str]
    ) -> None:
        self._recipe, self._where, self._files = recipe, where, files
        self.image: Scores = {name: row["image"] for name, row in rows.items() if name not in recipe.of_texts}
        self._texts: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
        for name in recipe.of_texts:
            by_text: dict[str, list[Mapping[str, Any]]] = {}
            for text in rows[name]["texts"] or []:
                by_text.setdefault(text["name"], []).append(text)
            self._texts[name] = by_text

    def raws(self, count: int) -> list[Scores]:
        """The scores of the raw texts; empty without a scorer of texts. Raises UserError if not `count` have scores."""
        if not self._texts:
            return []
        scores = {name: [text["score"] for text in texts.get(RAW, [])] for name, texts in self._texts.items()}
        return self._combined("raw", self._by_item(scores, count))

    def text(self, captioner: str, pieces: int) -> TextScores:
        """The scores of a captioner's text; empty without a scorer of texts.

        Raises UserError if they are of another number of sub-captions.
        """
        if not self._texts:
            return NO_TEXT
        rows = {name: next(iter(texts.get(captioner, [])), None) for name, texts in self._texts.items()}
        scores = {name: (row["pieces"] or [] if row else [None] * pieces) for name, row in rows.items()}
        whole = {name: row["score"] if row else None for name, row in rows.items()}
        of_pieces = self._combined("sub_captions", self._by_item(scores, pieces))
        return TextScores(self._combined("texts", [whole])[0], of_pieces)

    def _by_item(self, scores: Mapping[str, Sequence[float | None]], count: int) -> list[Scores]:
        """From a list of scores by scorer, the scores of each item."""
        for name, values in scores.items():
            if values and len(values) != count:
                file = self._files[name]
                raise UserError(
                    f"{file}: {self._where} has {count} texts or sub-captions, but scores of {len(values)}. "
                    f"{score_file.remedy(file)}"
                )
        return [{name: values[index] if values else None for name, values in scores.items()} for index in range(count)]

    def _combined(self, level: Level, items: list[Scores]) -> list[Scores]:
        return [item | {SCORE: self._recipe.combine(level, item)} for item in items]


class ShardScores:
    """The scores of one shard's images and texts.

    Args:
        recipe: The recipe.
        tables: By scorer, the scores of the shard, with the columns of `score_file.SCORES`.
        files: By scorer, the file of these scores, for errors.
    """

    def __init__(self, recipe: ScoreRecipe, tables: Mapping[str, pa.Table], files: Mapping[str, str]) -> None:
        self.recipe, self._files = recipe, files
        self._rows = {name: {row["uid"]: row for row in table.to_pylist()} for name, table in tables.items()}

    def take(self, image: Mapping[str, Any]) -> SampleScores:
        """The scores of an image. Raises UserError if a scorer has none for it."""
        where = f"image {image['key']} (uid {image['uid']})"
        rows = {}
        for name, by_uid in self._rows.items():
            if image["uid"] not in by_uid:
                file = self._files[name]
                raise UserError(f"{file}: has no scores of {where}. {score_file.remedy(file)}")
            rows[name] = by_uid[image["uid"]]
        return SampleScores(self.recipe, rows, where, self._files)


def best(level_scores: Iterable[Scores], limit: Limit) -> float | None:
    """The score of several texts that a limit is compared with: the one that is farthest from being left out."""
    values = [value for scores in level_scores if (value := scores.get(limit.score)) is not None]
    if not values:
        return None
    return max(values) if limit.minimum is not None else min(values)
