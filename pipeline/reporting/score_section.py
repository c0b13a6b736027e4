"""The report's section on scores: their distributions and limits, examples, and what labels say about them."""

from collections.abc import Iterator, Mapping
from typing import Any

from lotlip_data.pipeline.dataset.calibration import auc_sentence, labels_sentence
from lotlip_data.pipeline.dataset.score_stats import (
    LEVEL_NAMES,
    format_score,
    limit_sentence,
    score_title,
    series,
)
from lotlip_data.pipeline.dataset.scores import NO_SUB_CAPTION, Level
from lotlip_data.pipeline.reporting import charts
from lotlip_data.pipeline.reporting.score_examples import ScoreExamples

Chart = tuple[str, str]
"""A caption and an SVG element."""


def score_section(
    stats: Mapping[str, Any] | None,
    examples: ScoreExamples | None,
    calibration: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """Return what the template shows of scores; None if there is nothing.

    Args:
        stats: The result of `dataset_stats`.
        examples: The result of `find_examples`.
        calibration: The result of `calibrate`.
    """
    has_scores = bool(stats and "scores" in stats)
    if not has_scores and not calibration:
        return None
    return {
        "rows": list(_rows(stats)) if stats and has_scores else [],
        "charts": list(_charts(stats)) if stats and has_scores else [],
        "limits": list(_limits(stats)) if stats and has_scores else [],
        "captioners": {name: lists for name, lists in examples.captioners.items() if lists} if examples else {},
        "images": examples.images if examples else [],
        "frequent": examples.frequent if examples else {},
        "calibration": _calibration(calibration) if calibration else None,
    }


def _rows(stats: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield what is scored by which scorer, with count, mean, deviation, and the 5th, 50th and 95th percentile."""
    for name, of_scorer in stats["scores"].items():
        for label, summary in series(of_scorer):
            values = [summary["mean"], summary["deviation"], *(summary["quantiles"][p] for p in ("5", "50", "95"))]
            yield (
                f"{score_title(name)}: {label}",
                [f"{summary['count']:,}", *(format_score(value, 3) for value in values)],
            )


def _charts(stats: Mapping[str, Any]) -> Iterator[Chart]:
    """Yield the charts of each score: of sub-captions and of texts, or of images, with the limits that apply."""
    for name, of_scorer in stats["scores"].items():
        title = score_title(name)
        for level, summaries in _levels(of_scorer):
            known = {label: summary for label, summary in summaries.items() if summary["count"]}
            limits = [
                limit[end]
                for limit in stats["score_limits"]
                for end in ("minimum", "maximum")
                if limit["score"] == name and limit["of"] == level and limit[end] is not None
            ]
            if known:
                what = (
                    "images" if level == "samples" else "raw and long texts" if level == "texts" else LEVEL_NAMES[level]
                )
                yield f"{title} of {what}", charts.score_chart(known, title, limits)


def _levels(of_scorer: Mapping[str, Any]) -> Iterator[tuple[Level, dict[str, Any]]]:
    if "images" in of_scorer:
        yield "samples", {"images": of_scorer["images"]}
        return
    yield "sub_captions", {name: levels["sub_captions"] for name, levels in of_scorer["captioners"].items()}
    texts = {name: levels["texts"] for name, levels in of_scorer["captioners"].items()}
    yield "texts", texts | {"raw texts": of_scorer["raw"]}


def _limits(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each limit in words, and how much it and the others of its score have left out of the dataset."""
    for limit in stats["score_limits"]:
        end = "low" if limit["minimum"] is not None else "high"
        reason = f"{limit['score']}_too_{end}"
        counts = {"samples": stats["dropped"].get(reason, 0)} if limit["of"] == "samples" else {
            what: count
            for what, reasons in stats["dropped_texts"].items()
            if _level_of(what, list(stats["captioners"])) == limit["of"] and (count := reasons.get(reason, 0))
        }  # fmt: skip
        yield limit_sentence(limit), ", ".join(f"{count:,} ({what})" for what, count in counts.items()) or "0"
    emptied = {
        what: reasons[NO_SUB_CAPTION] for what, reasons in stats["dropped_texts"].items() if NO_SUB_CAPTION in reasons
    }
    if emptied:
        counts_of = ", ".join(f"{count:,} ({what})" for what, count in emptied.items())
        yield "long texts without any sub-caption left", counts_of


def _level_of(what: str, captioners: list[str]) -> Level:
    """The level of a kind of left-out texts in dataset.json: `raw`, a captioner, or the column of its sub-captions."""
    return "raw" if what == "raw" else "texts" if what in captioners else "sub_captions"


def _calibration(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what labels say: a sentence on them, a row and a reliability chart per score and level, ROC charts."""
    found = [
        (f"{score_title(name)} of {LEVEL_NAMES[level]}", level, of_level, score_title(name))
        for name, levels in result["scorers"].items()
        for level, of_level in levels.items()
    ]
    curves: dict[Level, dict[str, Any]] = {}
    for _, level, of_level, title in found:
        if of_level["roc"]:
            curves.setdefault(level, {})[f"{title} (AUC {of_level['auc']:.3f})"] = of_level["roc"]
    return {
        "labels": labels_sentence(result),
        "rows": [
            (title, f"{each['labels']:,}", f"{each['correct'] / each['labels']:.1%}", auc_sentence(each))
            for title, _, each, _ in found
        ],
        "roc": [(LEVEL_NAMES[level], charts.roc_chart(each)) for level, each in curves.items()],
        "reliability": [(title, charts.reliability_chart(each["table"], name)) for title, _, each, name in found],
    }
