"""The report's figures as one page of HTML that needs no network and no script."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lotlip_data.pipeline.reporting import charts
from lotlip_data.pipeline.reporting.escaping import template_value
from lotlip_data.pipeline.reporting.report import LOOKED_AT

TEMPLATES = Path(__file__).parent / "templates"

DUPLICATES = {
    "url": "rows with the URL of an earlier row",
    "duplicate": "images with the bytes of an earlier one",
    "near_duplicate": "images that look like an earlier one",
    "evaluation_image": "images that an evaluation set holds",
}

WAYS = {
    "t2i": "text to image",
    "i2t": "image to text",
    "cut": "texts cut",
    "cut_tokens": "tokens cut",
    "top1": "top-1",
}
"""Of the names in evaluations."""


def render(figures: dict[str, Any], stats: dict[str, Any] | None = None) -> str:
    """The page of `report.figures`, and of `stats.dataset_stats` where these were counted.

    Captions, reasons and names may hold anything: all that comes from the run is escaped and made visible.
    """
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=template_value
    )
    pages.filters |= {"number": _number, "amount": _amount, "share": lambda value: f"{value:.1%}"}
    written = {name: one for name, one in figures["captioners"].items() if one["texts"]}
    units = {unit: {name: one for name, one in written.items() if one["unit"] == unit} for unit in ("tokens", "words")}
    reasons = figures["failures"]["reasons"]
    dropped, dropped_texts = (dict((figures["dataset"] or {}).get(name, {})) for name in ("dropped", "dropped_texts"))
    of_texts = {f"{what}: {reason}": count for what, few in dropped_texts.items() for reason, count in few.items()}
    return pages.get_template("report.html.j2").render(
        **{name: value for name, value in figures.items() if name not in ("trained", "duplicates")},
        name=figures["run"].rstrip("/").rsplit("/", 1)[-1],
        looked_at=LOOKED_AT,
        failure_chart=charts.bars(reasons, "URLs") if reasons else "",
        length_charts=[charts.lengths(some, f"{unit} of a text") for unit, some in units.items() if some],
        lengths_shown=charts.SHOWN,
        dropped_chart=charts.bars(dropped, "images") if dropped else "",
        dropped_texts_chart=charts.bars(of_texts, "texts left out") if of_texts else "",
        asked=list(_asked(figures["plan"])) if figures["plan"] else [],
        duplicate_rows=[(DUPLICATES[name], count) for name, count in figures["duplicates"].items()],
        stats=list(_rows(stats)) if stats else None,
        table_charts=list(_table_charts(stats)) if stats else [],
        trained=list(figures["trained"]),
        model_rows=list(_model_rows(figures["trained"])),
    )


def _number(value: float) -> str:
    return f"{value:,}"


def _amount(value: float) -> str:
    """Two digits of what is small, one behind the point of what is large: 0.083, 2.5, 1,204.3."""
    return f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


def _asked(plan: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """How the rows of the lists become the images to fetch: what comes before these adds up to them."""
    parts = [("rows of the lists", plan["rows"])]
    parts += [(f"not usable: {reason}", -count) for reason, count in plan["invalid"].items()]
    filtered = [(source, rule, count) for source, few in plan["filtered"].items() for rule, count in few.items()]
    parts += [(f"filtered of {source}: {rule}", -count) for source, rule, count in filtered]
    parts += [(f"of {source}, beyond its sample", -count) for source, count in plan["not_drawn"].items()]
    parts += [("with the URL of an earlier row", -plan["duplicates"])]
    parts += [("beyond the manifest's sample", plan["images"] - sum(count for _, count in parts))]
    yield parts[0]
    yield from ((what, count) for what, count in parts[1:] if count)
    yield "images to fetch", plan["images"]


def _table_charts(stats: dict[str, Any]) -> Iterator[str]:
    """Of the dataset's raw texts and each captioner's: how long they are, and their sub-captions."""
    if kinds := {name: row for name, row in {**stats["captioners"], "raw texts": stats["raw"]}.items() if row["texts"]}:
        yield charts.lengths(kinds, "BERT tokens of a text")
    if long := {name: row["sub_captions_per_text"] for name, row in stats["captioners"].items() if row["texts"]}:
        yield charts.bars(long, "sub-captions a text", "{:.2f}")


def _rows(stats: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for source, few in {"": stats, **(stats["sources"] if len(stats["sources"]) > 1 else {})}.items():
        before = f"{source}: " if source else ""
        for name, row in {"raw texts": few["raw"], **few["captioners"], "all long texts": few}.items():
            yield before + name, {"images": few["images"], **row}


def _model_rows(trained: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Each figure of the evaluations, a column a model."""
    results = [
        dict(_flat({name: one.get(name) for name in ("retrieval", "classification")})) for one in trained.values()
    ]
    for label in dict.fromkeys(label for found in results for label in found):
        yield label, [found.get(label, "–") for found in results]


def _flat(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every number of nested results, under its path behind the first name; shares in percent."""
    if isinstance(found, dict):
        for name, value in found.items():
            yield from _flat(value, (*path, str(WAYS.get(name, name))))
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield ", ".join(path[1:]), f"{found:.1%}" if isinstance(found, float) else f"{found:,}"
