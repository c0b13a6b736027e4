"""The scores of a dataset as the pages show them: of an image, of its texts, and of sub-captions, which they tint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.formats.schema import SCORE
from lotlip_data.pipeline.dataset.score_stats import (
    format_score,
    limit_sentence,
    score_title,
)
from lotlip_data.pipeline.dataset.scores import Scores

PIECES = "sub_captions"


class Tint(NamedTuple):
    """How a sub-caption is marked. The mark says the same as the colour."""

    css: str
    mark: str
    label: str


TINTS = (
    Tint("t0", "−−", "far worse"),
    Tint("t1", "−", "worse"),
    Tint("t2", "", "average"),
    Tint("t3", "+", "better"),
    Tint("t4", "++", "far better"),
)
EDGES = (-1.0, -0.5, 0.5, 1.0)
"""What separates the tints, in standard deviations of the scores of all sub-captions."""


@dataclass(frozen=True)
class Scoring:
    """The scores that a dataset has.

    Args:
        scorers: The scorers.
        standards: By scorer of texts that the combined score counts: the `mean`, `deviation` and `weight` of the scores
            of sub-captions.
        limits: What was left out because of its score, as in dataset.json.
        has_combined: Whether there is a combined score: whether any scorer counts in it.
    """

    scorers: schema.Scorers = field(default_factory=dict)
    standards: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    limits: Sequence[Mapping[str, Any]] = ()
    has_combined: bool = True

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Scoring":
        """The scores of the dataset that a dataset.json describes."""
        limits = content.get("score_limits", {})
        standards = limits.get("standards", {})
        combined = any(standards.values())
        return cls(schema.scorers_of(content), standards.get(PIECES, {}), limits.get("limits", ()), combined)

    @property
    def of_texts(self) -> list[str]:
        """The combined score, if there is one, and the scorers of texts."""
        return [name for name in schema.scores_of_texts(self.scorers) if name != SCORE or self.has_combined]

    @property
    def of_images(self) -> list[str]:
        return schema.scores_of_images(self.scorers)

    @property
    def names(self) -> list[str]:
        """The names of all scores; the first one is the default of the pages."""
        return [*self.of_texts, *self.of_images]

    def name(self, chosen: str) -> str:
        """The score that a form chooses; by default the first one."""
        return chosen or next(iter(self.names), "")

    def tinting(self, chosen: str) -> str:
        """The score that tints sub-captions: the chosen one if its spread is known, else the combined one, if any."""
        if chosen in self.standards:
            return chosen
        return SCORE if SCORE in self.of_texts else ""

    def tint(self, name: str, value: float | None) -> Tint | None:
        """How a sub-caption with this score is marked; None if it has none, or if all have the same."""
        if value is None:
            return None
        if name != SCORE:
            standard = self.standards[name]
            if not standard["deviation"]:
                return None
            sign = -1.0 if standard["weight"] < 0 else 1.0
            value = sign * (value - standard["mean"]) / standard["deviation"]
        return TINTS[sum(value > edge for edge in EDGES)]

    def of_text(self, row: Mapping[str, Any], captioner: str) -> Scores:
        """The scores of a captioner's text."""
        return {name: row[schema.text_score_column(captioner, name)] for name in self.of_texts}

    def of_pieces(self, row: Mapping[str, Any], captioner: str) -> list[Scores]:
        """The scores of each of its sub-captions."""
        return self._by_item(row, {name: schema.piece_scores_column(captioner, name) for name in self.of_texts})

    def of_raws(self, row: Mapping[str, Any]) -> list[Scores]:
        """The scores of each raw text."""
        return self._by_item(row, {name: schema.raw_scores_column(name) for name in self.of_texts})

    def of_image(self, row: Mapping[str, Any]) -> Scores:
        return {name: row[name] for name in self.of_images}

    def reasons(self) -> dict[str, str]:
        """By reason to leave something out because of its score, what the limits are."""
        sentences: dict[str, list[str]] = {}
        for limit in self.limits:
            for end, word in (("minimum", "low"), ("maximum", "high")):
                if limit.get(end) is not None:
                    sentences.setdefault(f"{limit['score']}_too_{word}", []).append(limit_sentence(limit))
        return {reason: "; ".join(each) for reason, each in sentences.items()}

    @staticmethod
    def _by_item(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Scores]:
        lists = {name: row[column] or [] for name, column in columns.items()}
        count = max(map(len, lists.values()), default=0)
        return [
            {name: values[item] if item < len(values) else None for name, values in lists.items()}
            for item in range(count)
        ]


NO_SCORING = Scoring()
"""Of a dataset without scores."""


def score_sentence(scores: Scores) -> str:
    """Scores as one line, such as `combined score −0.42, similarity 0.212`."""
    known = [f"{score_title(name)} {score_number(value)}" for name, value in scores.items() if value is not None]
    return ", ".join(known) or "no score"


def score_number(value: float | None) -> str:
    """A score as people read it; a dash for none."""
    return "–" if value is None else format_score(value).replace("-", "−")
