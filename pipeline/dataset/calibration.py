"""How well the scores of a dataset tell what is correct: compares them with the labels of a user.

For each score: the area under the ROC curve (AUC), which is the probability that something correct has a better score
than something wrong, with ties as half; and a calibration table, the share of correct labels by range of the score.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests import artifacts, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index, schema, score_file
from lotlip_data.manifests.formats.dataset_index import DatasetError
from lotlip_data.manifests.formats.schema import SCORE, SUB_SUFFIX
from lotlip_data.manifests.formats.score_file import RAW
from lotlip_data.manifests.progress import track
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.labels import Label, read_labels
from lotlip_data.pipeline.dataset.score_stats import (
    LEVEL_NAMES,
    format_score,
    score_title,
)
from lotlip_data.pipeline.dataset.scores import Level

BATCH_ROWS = 1000
BINS = 10
"""Rows of a calibration table at most."""
BIN_LABELS = 5
"""Labels that a row of the table has on average at least."""
CURVE_POINTS = 200
_Z = 1.96
"""Of a two-sided interval of 95%."""

Better = Literal["higher", "lower"]


def better_scores(run: Run, content: Mapping[str, Any]) -> dict[str, Better]:
    """By score of a dataset, which values are better, as far as it is known: from the scorer's record in the run, or
    from the sign with which the combined score counts it."""
    standards: Mapping[str, Any] = content.get("score_limits", {}).get("standards", {})
    known: dict[str, Better] = {SCORE: "higher"}
    for of_level in standards.values():
        for name, standard in of_level.items():
            known[name] = "lower" if standard["weight"] < 0 else "higher"
    for name in schema.scorers_of(content):
        try:
            record = score_file.read_scorer(run, name)
        except UserError:  # `verify` names it; the dataset can be read without it
            record = None
        if record is not None:
            known[name] = record.better
    return known


@dataclass
class _Pairs:
    """The labels that meet a score."""

    scores: list[float] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)


class _Matcher:
    """Finds the scores that labels are about."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        scorers = schema.scorers_of(content)
        self._captioners = list(content["captioners"])
        self._of_texts, self._of_images = schema.scores_of_texts(scorers), schema.scores_of_images(scorers)
        self.scores = [*self._of_texts, *self._of_images]
        self.pairs: dict[tuple[str, Level], _Pairs] = {}
        self.unmatched: Counter[str] = Counter()
        self.columns = ["uid", "raws", *self._captioners, *(name + SUB_SUFFIX for name in self._captioners)]
        self.columns += [column.name for column in schema.score_columns_of(content)]

    def add(self, row: Mapping[str, Any], label: Label) -> None:
        """Take the scores of what a label is about, or count why there are none."""
        reason = self._of_image(row, label) if not label.captioner else self._of_text(row, label)
        if reason:
            self.unmatched[reason] += 1

    def _of_image(self, row: Mapping[str, Any], label: Label) -> str | None:
        return self._take(row, label, "samples", {name: row[name] for name in self._of_images})

    def _of_text(self, row: Mapping[str, Any], label: Label) -> str | None:
        name, level, item = label.captioner, self._level(label), label.item or 0
        if name != RAW and name not in self._captioners:
            return "the dataset has no such captioner"
        texts: Sequence[str] = row["raws"] if level == "raw" else row[name + SUB_SUFFIX] or []
        if level == "texts":
            texts = [] if row[name] is None else [row[name]]
        if item >= len(texts):
            return "the sample has no such text or sub-caption"
        if label.text is not None and label.text != texts[item].strip():
            return "the dataset has another text there"
        scores: dict[str, float | None] = {}
        for scorer in self._of_texts:
            if level == "texts":
                scores[scorer] = row[schema.text_score_column(name, scorer)]
            else:
                of_raw = level == "raw"
                column = schema.raw_scores_column(scorer) if of_raw else schema.piece_scores_column(name, scorer)
                scores[scorer] = row[column][item]
        return self._take(row, label, level, scores)

    def _take(
        self, row: Mapping[str, Any], label: Label, level: Level, scores: Mapping[str, float | None]
    ) -> str | None:
        known = {name: score for name, score in scores.items() if score is not None}
        for name, score in known.items():
            pairs = self.pairs.setdefault((name, level), _Pairs())
            pairs.scores.append(score)
            pairs.correct.append(label.correct)
        return None if known else "it has no score"

    @staticmethod
    def _level(label: Label) -> Level:
        if label.captioner == RAW:
            return "raw"
        return "texts" if label.item is None else "sub_captions"


def calibrate(run: Run, labels_url: str) -> dict[str, Any]:
    """Compare the scores of the run's dataset with labels.

    Args:
        run: The run.
        labels_url: The file of labels (see `labels`).

    Returns:
        `labels`, their number; `unmatched`, those without a score by reason; and `scorers`: by score and level
        (`sub_captions`, `texts`, `raw`, `samples`) what `compare` returns.

    Raises:
        DatasetError: There is no dataset, or it has no scores, or a file cannot be read.
        UserError: The labels cannot be used.
    """
    labels = read_labels(labels_url)
    content = dataset_index.read_index(run)
    if not content.get("scorers"):
        raise DatasetError(f"{run.url}: the dataset has no scores, so labels cannot be compared with them")
    matcher = _Matcher(content)
    wanted, found = pa.array(labels.by_uid, pa.string()), set[str]()
    for row in _rows(run, content, matcher.columns, wanted):
        found.add(row["uid"])
        for label in labels.by_uid[row["uid"]]:
            matcher.add(row, label)
    if absent := sum(len(each) for uid, each in labels.by_uid.items() if uid not in found):
        matcher.unmatched["no sample has this uid"] += absent
    better = better_scores(run, content)
    scorers: dict[str, dict[str, Any]] = {}
    for name in matcher.scores:
        for level in LEVEL_NAMES:
            pairs = matcher.pairs.get((name, level))
            if pairs is not None:
                of_level = compare(np.array(pairs.scores), np.array(pairs.correct), better.get(name, "higher"))
                scorers.setdefault(name, {})[level] = of_level
    return {"labels": labels.count, "unmatched": dict(matcher.unmatched.most_common()), "scorers": scorers}


def _rows(run: Run, content: Mapping[str, Any], columns: Sequence[str], uids: pa.Array) -> Iterator[dict[str, Any]]:
    """The samples with these uids."""
    remedy = f"`lotlip-data verify {run.url}` says what to do."
    for file in track(dataset_index.shard_files(run, content), "labels", "file"):
        digest = file.parquet.digest
        for batch in artifacts.iter_parquet(file.parquet_url, remedy, columns, BATCH_ROWS, DatasetError, digest):
            yield from batch.filter(pc.is_in(batch["uid"], uids)).to_pylist()


def compare(scores: np.ndarray, correct: np.ndarray, better: Better) -> dict[str, Any]:
    """Compare scores with labels.

    Args:
        scores: float [n], at least one.
        correct: bool [n].
        better: Which scores are better.

    Returns:
        `labels` (n), `correct` (how many are), `better`; `auc` and `auc_error`, its standard error (Hanley and McNeil,
        1982), both null if all labels are alike; `table`, the rows of `calibration_table`; and `roc`, points of the
        curve: the share of the wrong and the share of the correct ones with a score that is at least as good.
    """
    signed = scores if better == "higher" else -scores
    auc, error = auc_and_error(signed, correct)
    return {
        "labels": len(scores),
        "correct": int(correct.sum()),
        "better": better,
        "auc": auc,
        "auc_error": error,
        "table": calibration_table(scores, correct),
        "roc": _roc(signed, correct),
    }


def auc_and_error(signed: np.ndarray, correct: np.ndarray) -> tuple[float | None, float | None]:
    """The AUC of scores whose higher values are better, and its standard error; both None if all labels are alike.

    Args:
        signed: float [n].
        correct: bool [n].
    """
    positives, negatives = int(correct.sum()), int((~correct).sum())
    if not positives or not negatives:
        return None, None
    _, place, counts = np.unique(signed, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]  # of equal scores, the mean of their places
    auc = float((ranks[correct].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return auc, float(np.sqrt(max(0.0, variance) / (positives * negatives)))


def _roc(signed: np.ndarray, correct: np.ndarray) -> list[list[float]]:
    """At most about CURVE_POINTS points, from (0, 0) to (1, 1); empty if all labels are alike."""
    if correct.all() or not correct.any():
        return []
    order = np.argsort(-signed, kind="stable")
    is_last = np.append(np.diff(signed[order]) != 0, True)  # of equal scores
    right = np.cumsum(correct[order])[is_last] / correct.sum()
    wrong = np.cumsum(~correct[order])[is_last] / (~correct).sum()
    chosen = np.unique(np.linspace(0, len(right) - 1, CURVE_POINTS).round().astype(int))
    return [[0.0, 0.0], *np.stack([wrong[chosen], right[chosen]], axis=1).tolist()]


def calibration_table(scores: np.ndarray, correct: np.ndarray) -> list[dict[str, Any]]:
    """The share of correct labels by range of the score.

    Ranges have about equal numbers of labels; equal scores are in one range. Each row has the `lowest`, `highest` and
    `mean` score, the number of `labels`, the `share` that is correct, and `low` and `high`, the ends of its Wilson
    interval of 95%.
    """
    bins = max(1, min(BINS, len(scores) // BIN_LABELS))
    edges = np.unique(np.quantile(scores, np.arange(1, bins) / bins, method="higher"))
    number = np.searchsorted(edges, scores, side="right")
    rows = []
    for each in np.unique(number).tolist():
        values, right = scores[number == each], correct[number == each]
        share, count = float(right.mean()), len(right)
        middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
        half = _Z * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
        ends = {"low": max(0.0, min(share, float(middle - half))), "high": min(1.0, max(share, float(middle + half)))}
        bounds = {"lowest": float(values.min()), "highest": float(values.max()), "mean": float(values.mean())}
        rows.append({**bounds, "labels": count, "share": share, **ends})
    return rows


def table(result: Mapping[str, Any]) -> list[str]:
    """The result of `calibrate` as the lines of a table."""
    lines = ["", labels_sentence(result)]
    for name, levels in result["scorers"].items():
        for level, found in levels.items():
            what = f"{score_title(name)} of {LEVEL_NAMES[level]}"
            counts = f"{wording.count(found['labels'], 'label')}, {found['correct'] / found['labels']:.1%} correct"
            lines += ["", f"{what}: {auc_sentence(found)} ({counts})"]
            lines.append(f"{'scores':>24}{'labels':>10}{'correct':>10}   95% interval")
            for row in found["table"]:
                ends = f"{format_score(row['lowest'])} to {format_score(row['highest'])}"
                interval = f"{row['low']:.0%} to {row['high']:.0%}"
                lines.append(f"{ends:>24}{row['labels']:>10,}{row['share']:>10.1%}   {interval}")
    return lines


def labels_sentence(result: Mapping[str, Any]) -> str:
    """How many labels there are, and how many of them have no score, with the reasons."""
    without = sum(result["unmatched"].values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in result["unmatched"].items())
    return f"{wording.count(result['labels'], 'label')}, {without:,} of them without a score" + (
        f": {reasons}" if reasons else ""
    )


def auc_sentence(found: Mapping[str, Any]) -> str:
    """The AUC of one score in words."""
    if found["auc"] is None:
        return "no AUC, because all labels are alike"
    direction = "" if found["better"] == "higher" else ", lower scores are better"
    return f"AUC {found['auc']:.3f} ± {found['auc_error']:.3f}{direction}"
