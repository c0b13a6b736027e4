"""The report's figures as one page of HTML that needs no network and no script."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lotlip_data.pipeline import charts
from lotlip_data.pipeline.report import LOOKED_AT

PAGES = Path(__file__).parent / "pages"


def render(figures: dict[str, Any], stats: dict[str, Any] | None = None) -> str:
    """The page of `report.figures`, and of `stats.dataset_stats` where these were counted.

    All that comes from the run is escaped: captions, reasons and names may hold anything.
    """
    pages = Environment(loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined)
    pages.filters |= {"number": _number, "share": lambda value: f"{value:.1%}"}
    lengths = {name: one["lengths"] for name, one in figures["captioners"].items() if one["lengths"]}
    reasons = figures["failures"]["reasons"]
    dropped = (figures["dataset"] or {}).get("dropped")
    return pages.get_template("report.html.j2").render(
        **{name: value for name, value in figures.items() if name != "trained"},
        name=figures["run"].rstrip("/").rsplit("/", 1)[-1],
        looked_at=LOOKED_AT,
        failure_chart=charts.bars(reasons, "URLs") if reasons else "",
        length_chart=charts.histograms(lengths, "tokens of a text") if lengths else "",
        dropped_chart=charts.bars(dropped, "images") if dropped else "",
        stats=list(_rows(stats)) if stats else None,
        trained={name: list(_flat(found)) for name, found in figures["trained"].items()},
    )


def _number(value: float) -> str:
    return f"{value:,}"


def _rows(stats: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for source, few in {"": stats, **(stats["sources"] if len(stats["sources"]) > 1 else {})}.items():
        before = f"{source}: " if source else ""
        for name, row in {"raw texts": few["raw"], **few["captioners"], "all long texts": few}.items():
            yield before + name, {"images": few["images"], **row}


def _flat(found: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Every number of nested results, under its path."""
    if isinstance(found, dict):
        for name, value in found.items():
            yield from _flat(value, f"{before} {name}".strip())
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield before, f"{found:,.4g}"
