"""The report as one HTML page that needs neither a network nor scripts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lotlip_data.pipeline.reporting import charts
from lotlip_data.pipeline.reporting.escaping import template_value
from lotlip_data.pipeline.reporting.report import SAMPLED_SHARDS
from lotlip_data.pipeline.reporting.status import WINDOW_SECONDS

TEMPLATES = Path(__file__).parent / "templates"

DUPLICATE_LABELS = {
    "url": "rows that repeat an earlier URL",
    "duplicate": "images identical to an earlier one",
    "near_duplicate": "images that look like an earlier one",
    "evaluation_image": "images that are in an evaluation set",
}

METRIC_LABELS = {
    "t2i": "text to image",
    "i2t": "image to text",
    "cut": "texts truncated",
    "cut_tokens": "tokens truncated",
    "top1": "top-1",
}
"""Labels of names in result files; any other name is shown unchanged."""


def render_html(report: dict[str, Any], stats: dict[str, Any] | None = None) -> str:
    """Return the page.

    Captions, reasons and names come from the web and may hold anything: all text is escaped, with invisible characters
    spelled out.

    Args:
        report: The result of `report.build_report`.
        stats: The result of `dataset_stats`, for the statistics of Table 6.
    """
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=template_value
    )
    pages.filters |= {
        "number": "{:,}".format,
        "amount": _format_amount,
        "share": "{:.1%}".format,
        "size": _format_size,
    }
    plan = report["plan"]
    return pages.get_template("report.html.j2").render(
        **{name: value for name, value in report.items() if name not in ("trained", "duplicates")},
        **_report_charts(report),
        name=report["run"].rstrip("/").rsplit("/", 1)[-1],
        sampled_shards=SAMPLED_SHARDS,
        rate_minutes=WINDOW_SECONDS // 60,
        shown_share=charts.SHOWN_SHARE,
        row_counts=list(_row_counts(plan)) if plan else [],
        duplicate_rows=[(DUPLICATE_LABELS[name], count) for name, count in report["duplicates"].items()],
        stats=list(_stats_rows(stats)) if stats else None,
        stats_charts=list(_stats_charts(stats)) if stats else [],
        trained=list(report["trained"]),
        model_rows=list(_model_rows(report["trained"])),
    )


def _report_charts(report: dict[str, Any]) -> dict[str, Any]:
    """Return the charts of failures, text lengths and exclusions by their template names; empty without data."""
    captioners = {name: captioner for name, captioner in report["captioners"].items() if captioner["texts"]}
    by_unit = {
        unit: {name: captioner for name, captioner in captioners.items() if captioner["unit"] == unit}
        for unit in ("tokens", "words")
    }
    dataset = report["dataset"] or {}
    dropped_texts = {
        f"{column}: {reason}": count
        for column, reasons in dataset.get("dropped_texts", {}).items()
        for reason, count in reasons.items()
    }

    def bars(counts: dict[str, Any], label: str) -> str:
        return charts.bar_chart(counts, label) if counts else ""

    return {
        "failure_chart": bars(report["failures"]["reasons"], "URLs"),
        "length_charts": [
            charts.length_chart(series, f"{unit} per text") for unit, series in by_unit.items() if series
        ],
        "dropped_chart": bars(dataset.get("dropped", {}), "images"),
        "dropped_texts_chart": bars(dropped_texts, "texts left out"),
    }


def _format_amount(value: float) -> str:
    """Return one decimal of numbers from 10 and two significant digits of smaller ones: 1,204.3, 2.5, 0.083."""
    return f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


def _format_size(count: int) -> str:
    """Return a number of bytes in GiB, or in MiB if it is smaller than 1 GiB."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.2f} MiB"


def _row_counts(plan: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield how the rows of the lists become the images to download: all entries before the last add up to it."""
    counts = [("rows in the lists", plan["rows"])]
    counts += [(f"unusable: {reason}", -count) for reason, count in plan["invalid"].items()]
    filtered = [(source, rule, count) for source, rules in plan["filtered"].items() for rule, count in rules.items()]
    counts += [(f"filtered out of {source}: {rule}", -count) for source, rule, count in filtered]
    counts += [(f"not in the sample of {source}", -count) for source, count in plan["not_drawn"].items()]
    counts += [("repeat an earlier URL", -plan["duplicates"])]
    counts += [("not in the manifest's sample", plan["images"] - sum(count for _, count in counts))]
    yield counts[0]
    yield from ((label, count) for label, count in counts[1:] if count)
    yield "images to download", plan["images"]


def _stats_charts(stats: dict[str, Any]) -> Iterator[str]:
    """Yield charts of the dataset: lengths of raw and long texts, and sub-captions per long text."""
    captioners = {name: row for name, row in stats["captioners"].items() if row["texts"]}
    raw = {"raw texts": stats["raw"]} if stats["raw"]["texts"] else {}
    if captioners or raw:
        yield charts.length_chart(captioners | raw, "BERT tokens per text")
    if captioners:
        sub_captions = {name: row["sub_captions_per_text"] for name, row in captioners.items()}
        yield charts.bar_chart(sub_captions, "sub-captions per text", "{:.2f}")


def _stats_rows(stats: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of Table 6 with their labels: of the whole dataset, then of each source if there are several."""
    by_source = stats["sources"] if len(stats["sources"]) > 1 else {}
    for source, part in {"": stats, **by_source}.items():
        prefix = f"{source}: " if source else ""
        for name, row in {"raw texts": part["raw"], **part["captioners"], "all long texts": part}.items():
            yield prefix + name, {"images": part["images"], **row}


def _model_rows(trained: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each metric with its values, one per model."""
    results = [
        dict(_metrics({kind: result.get(kind) for kind in ("retrieval", "classification")}))
        for result in trained.values()
    ]
    for label in dict.fromkeys(label for metrics in results for label in metrics):
        yield label, [metrics.get(label, "–") for metrics in results]


def _metrics(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield every number of a nested result, labelled with its path without the first name; fractions in percent."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _metrics(item, (*path, str(METRIC_LABELS.get(name, name))))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield ", ".join(path[1:]), f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
