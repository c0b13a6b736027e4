"""The texts that a sample contributes to a step: one short text, and T long texts.

Letters: T long texts per sample and step, S sub-captions per long text (paper, Sec. 4.2; S = 3).

A sub-caption that `ScoreUse.best` leaves out does not exist for what follows: the summary of a text, which Long-CLIP
matches alone and DeBias-CLIP leaves out, is then the first sub-caption that is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.formats.schema import SUB_SUFFIX
from lotlip_data.manifests.settings.training import ShortText, SubCaptionChoice
from lotlip_data.manifests.subcaptions import SplitMode

TextRow = dict[str, Any]
"""A row of a Parquet twin: `key`, `raw` (str or None), and for each captioner `NAME_sub` (list[str] or None). If the
training uses scores, also `NAME_score` (float or None) and `NAME_sub_scores` (list[float | None] or None)."""

_CONSECUTIVE_SHARE = 0.5
"""Share of the texts of several sub-captions that are consecutive under `diverse` (FLAIR's `sample_dict`)."""


@dataclass(frozen=True)
class SampleTexts:
    """The texts of one sample at one step: the short text and T long texts."""

    short: str
    long: list[str]
    padding: float = 0.0
    """In [0, 1): the share of its free positions that the short text is moved back (prefix padding)."""


@dataclass(frozen=True)
class ScoreUse:
    """How the choice of texts uses their scores. A text or sub-caption without a score has the mean weight."""

    temperature: float | None = None
    """Texts and windows of sub-captions are drawn with weight exp(score / temperature). None: all alike."""
    best: int | None = None
    """Only so many sub-captions of a long text are used, those with the highest scores. None: all."""


class _SubCaptions(NamedTuple):
    """Sub-captions in their order, and the score of each where scores are used."""

    pieces: list[str]
    scores: list[float | None]

    def after_summary(self) -> "_SubCaptions":
        """All but the first one. A single one stays."""
        return self if len(self.pieces) == 1 else _SubCaptions(self.pieces[1:], self.scores[1:])


class TextPicker:
    """Picks T long texts of a sample at random, S consecutive sub-captions of each (paper, Fig. 2), and a short text.

    The captioners of a sample's long texts differ while it has enough of them. A sample with fewer than T long texts
    uses some twice, each time with other sub-captions. A sample without long texts uses its raw text for all.
    """

    def __init__(
        self,
        captioners: Sequence[str],
        long_texts: int,
        sub_captions: int | Literal["all"],
        mode: SplitMode,
        scores: ScoreUse | None = None,
        *,
        choice: SubCaptionChoice = "consecutive",
        short_text: ShortText = "raw",
        prefix_padding: bool = False,
    ) -> None:
        """
        Args:
            captioners: Whose long texts are used.
            long_texts: T.
            sub_captions: S, or `all` for the whole text.
            mode: How the dataset's long texts were split.
            scores: How scores are used. None: they are not, and the dataset needs none.
            choice: Which sub-captions a text is made of.
            short_text: What the short text is. It is the raw text where there are no long texts.
            prefix_padding: Whether `SampleTexts.padding` is drawn.
        """
        self.captioners = list(captioners)
        self.long_texts = long_texts
        self.sub_captions = sub_captions
        self.mode = mode
        self.scores = scores
        self.choice = choice
        self.short_text = short_text
        self.prefix_padding = prefix_padding

    def pick(self, row: TextRow, rng: np.random.Generator) -> SampleTexts:
        short, long = self._pick(row, rng)
        return SampleTexts(short, long, float(rng.random()) if self.prefix_padding else 0.0)

    def _pick(self, row: TextRow, rng: np.random.Generator) -> tuple[str, list[str]]:
        """The short text and the long texts."""
        raw = row["raw"] or ""
        names = [name for name in self.captioners if row[name + SUB_SUFFIX]] if self.long_texts else []
        if not names:
            return raw, [raw] * self.long_texts
        count = self.long_texts + (self.short_text == "sampled")
        if self.choice == "diverse":
            pool = self._pool(row, names, raw)
            texts = [self._diverse(pool, rng) for _ in range(count)]
            return (texts.pop() if self.short_text == "sampled" else raw), texts
        rounds = -(-count // len(names))
        order = np.concatenate([self._order(self._text_scores(row, names), rng) for _ in range(rounds)])
        sources = [self._sub_captions(row, names[index]) for index in order[:count]]
        texts = [self._window(source, self.sub_captions, rng) for source in sources]
        if self.short_text == "sampled":
            return texts.pop(), texts
        return self._short(raw, sources[0], rng), texts

    def _short(self, raw: str, text: _SubCaptions, rng: np.random.Generator) -> str:
        """The short text beside a first long text that was made of the sub-captions `text`."""
        if self.short_text == "first_sub_caption":
            return self._join(text.pieces[:1])
        if self.short_text == "debiased":
            rest = text.after_summary()
            return self._some(rest, int(rng.integers(1, len(rest.pieces) + 1)), rng)
        return raw

    def _diverse(self, pool: _SubCaptions, rng: np.random.Generator) -> str:
        """A text as FLAIR draws it: 1 to S sub-captions of the pool, consecutive ones or any.

        FLAIR's code (ExplainableML/flair, src/flair/data.py) never draws the last window of a pool and repeats
        sub-captions of a pool that is too small. This function does neither.
        """
        assert self.sub_captions != "all", "the settings have been checked"
        count = min(int(rng.integers(1, self.sub_captions + 1)), len(pool.pieces))
        if count > 1 and rng.random() < _CONSECUTIVE_SHARE:
            return self._window(pool, count, rng)
        return self._some(pool, count, rng)

    def _some(self, text: _SubCaptions, count: int, rng: np.random.Generator) -> str:
        """`count` different sub-captions in random order."""
        return self._join([text.pieces[index] for index in self._order(text.scores, rng)[:count]])

    def _window(self, text: _SubCaptions, count: int | Literal["all"], rng: np.random.Generator) -> str:
        """`count` consecutive sub-captions, or all if there are fewer. A window's weight is their geometric mean."""
        pieces = len(text.pieces)
        width = pieces if count == "all" else min(count, pieces)
        if self._temperature is None:
            first = int(rng.integers(pieces - width + 1))
        else:
            weights = log_weights(text.scores, self._temperature)
            means = np.lib.stride_tricks.sliding_window_view(weights, width).mean(axis=1)
            first = int(np.argmax(means + rng.gumbel(size=len(means))))  # a draw with weights exp(means)
        return self._join(text.pieces[first : first + width])

    def _order(self, scores: Sequence[float | None], rng: np.random.Generator) -> np.ndarray:
        """A random order: the next one is drawn with its weight, of those that are left."""
        if self._temperature is None:
            return rng.permutation(len(scores))
        weights = log_weights(scores, self._temperature)
        return np.argsort(-(weights + rng.gumbel(size=len(scores))), kind="stable")

    def _text_scores(self, row: TextRow, names: Sequence[str]) -> list[float | None]:
        """The scores of the long texts of captioners, None for each where scores are not used."""
        if self.scores is None:
            return [None] * len(names)
        return [row[schema.text_score_column(name, schema.SCORE)] for name in names]

    def _sub_captions(self, row: TextRow, name: str) -> _SubCaptions:
        """The sub-captions of a captioner's text that are used."""
        pieces = row[name + SUB_SUFFIX]
        if self.scores is None:
            return _SubCaptions(pieces, [None] * len(pieces))
        scores = row[schema.piece_scores_column(name, schema.SCORE)] or [None] * len(pieces)
        if self.scores.best is not None:
            kept = best_indices(scores, self.scores.best)
            pieces, scores = [pieces[index] for index in kept], [scores[index] for index in kept]
        return _SubCaptions(pieces, scores)

    def _pool(self, row: TextRow, names: Sequence[str], raw: str) -> _SubCaptions:
        """The raw text and the sub-captions of all captioners, in order. The raw text has no score."""
        texts = [self._sub_captions(row, name) for name in names]
        raws = [raw] if raw else []
        pieces = [*raws, *(piece for text in texts for piece in text.pieces)]
        return _SubCaptions(pieces, [*(None for _ in raws), *(score for text in texts for score in text.scores)])

    @property
    def _temperature(self) -> float | None:
        return None if self.scores is None else self.scores.temperature

    def _join(self, pieces: Sequence[str]) -> str:
        return subcaptions.join(pieces, self.mode)


def log_weights(scores: Sequence[float | None], temperature: float) -> np.ndarray:
    """float64 [N], the logarithms of the weights exp(score / temperature), up to a common summand.

    Args:
        scores: N scores. None has the mean weight of the others.
        temperature: Above 0.
    """
    values = np.array([np.nan if score is None else score for score in scores], dtype=np.float64) / temperature
    known = np.isfinite(values)
    if not known.any():
        return np.zeros(len(values))
    values -= values[known].max()
    return np.where(known, values, np.log(np.exp(values[known]).mean()))


def best_indices(scores: Sequence[float | None], count: int) -> list[int]:
    """The indices of the `count` highest scores, in order. None is as the mean of the others; of equals the first."""
    values = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
    known = np.isfinite(values)
    values = np.where(known, values, values[known].mean() if known.any() else 0.0)
    return sorted(np.argsort(-values, kind="stable")[:count].tolist())
