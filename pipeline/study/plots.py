"""The study's plots as SVG files. Equal results give equal bytes."""

import io
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from lotlip_data.pipeline.study.paper_claims import Table, TableRow
from lotlip_data.pipeline.study.results import Results

SERIES_COLOURS = ("#3b7dd8", "#d8743b")
INK, RED = "#333333", "#c03030"
AXIS_LABELS = {
    "long": "long texts, mean R@1, %",
    "short": "short texts, mean R@1, %",
    "class": "classes, top-1, %",
    "unrelated": "12–20 sentences, mean R@1, %",
    "detailed": "near twins, mean R@1, %",
    "flops": "text tower, MFLOP per text",
}


def plot(table: Table, results: Results) -> str:
    """The SVG of a table or figure, with one panel per metric.

    A figure has one line per series. A table has one row of dots per experiment, one dot per seed, with the mean.
    """
    metrics = [*table.metrics, *(["flops"] if table.name == "figure-4" else [])]
    height = 2.6 if table.x else 0.8 + 0.3 * len(table.rows)
    figure, panels = new_figure(len(metrics), height, share_y=not table.x)
    for panel, metric in zip(panels, metrics, strict=True):
        if table.x:
            _plot_curves(panel, table, results, metric)
        else:
            _plot_dots(panel, table.rows, results, metric)
    if len(table.series) > 1:
        panels[0].legend(frameon=False, fontsize=8)
    return to_svg(figure)


def _plot_dots(panel: Any, rows: Sequence[TableRow], results: Results, metric: str) -> None:
    for position, row in enumerate(rows):
        values = list(results.values(row.experiment, metric).values())
        panel.plot(values, [position] * len(values), "o", color=SERIES_COLOURS[0], alpha=0.5, markersize=4)
        if values:
            panel.plot([fmean(values)], [position], "|", color=INK, markersize=12)
    panel.set_yticks(range(len(rows)), [row.label for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel(AXIS_LABELS[metric])


def _plot_curves(panel: Any, table: Table, results: Results, metric: str) -> None:
    if metric == "flops":
        padded = [results.padded_flops[int(limit)] for limit in table.x]
        panel.plot(table.x, padded, "*-", color=RED, label="padded to the limit")
        _plot_curve(panel, table.x, table.rows, results, "flops.text", style="o--", colour=RED, label="not padded")
        panel.legend(frameon=False, fontsize=8)
    else:
        for index, (label, colour) in enumerate(zip(table.series, SERIES_COLOURS, strict=False)):
            rows = table.rows[index * len(table.x) : (index + 1) * len(table.x)]
            _plot_curve(panel, table.x, rows, results, metric, style="o-", colour=colour, label=label)
    if table.name == "figure-4":
        panel.set_xscale("log", base=2)
        panel.set_xticks(table.x, [str(limit) for limit in table.x], rotation=60)
        panel.minorticks_off()
    panel.set_xlabel(table.x_label)
    panel.set_title(AXIS_LABELS[metric], fontsize=8, color=INK)


def _plot_curve(
    panel: Any,
    x: Sequence[float],
    rows: Sequence[TableRow],
    results: Results,
    metric: str,
    *,
    style: str,
    colour: str,
    label: str,
) -> None:
    """Plot means with standard deviations over seeds, at the positions where the experiment has run."""
    points = [(at, list(results.values(row.experiment, metric).values())) for at, row in zip(x, rows, strict=True)]
    points = [(at, values) for at, values in points if values]
    spread = [stdev(values) if len(values) > 1 else 0.0 for _, values in points]
    means = [fmean(values) for _, values in points]
    panel.errorbar(
        [at for at, _ in points], means, spread, fmt=style, color=colour, label=label, capsize=2, markersize=4
    )


def new_figure(panels: int, height: float, share_y: bool) -> tuple[Any, Sequence[Any]]:
    """A figure with panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * panels + (1.2 if share_y else 0), height), layout="constrained", facecolor="white")
    axes = figure.subplots(1, panels, squeeze=False, sharey=share_y)[0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, colors=INK)
        panel.xaxis.label.set(size=8, color=INK)
    return figure, axes


def to_svg(figure: Any) -> str:
    """The figure as SVG, the same bytes for the same figure."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lotlip-data", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
