"""The study's plots as SVG files, the same bytes for the same figures."""

import io
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from lotlip_data.pipeline.study.paper_claims import Line, Table
from lotlip_data.pipeline.study.results import Results

COLOURS = ("#3b7dd8", "#d8743b")
INK, RED = "#333333", "#c03030"
NAMES = {
    "long": "long texts, mean R@1, %",
    "short": "short texts, mean R@1, %",
    "class": "classes, top-1, %",
    "unrelated": "12–20 sentences, mean R@1, %",
    "detailed": "those of near twins, mean R@1, %",
    "flops": "text tower, MFLOP a text",
}


def plot(table: Table, results: Results) -> str:
    """One panel a metric: a line a series where the table has an x, else a row of dots, one a seed, with their mean."""
    metrics = [*table.metrics, *(["flops"] if table.name == "figure-4" else [])]
    height = 2.6 if table.x else 0.8 + 0.3 * len(table.lines)
    figure, panels = _figure(len(metrics), height, share_y=not table.x)
    for panel, metric in zip(panels, metrics, strict=True):
        if table.x:
            _curves(panel, table, results, metric)
        else:
            _dots(panel, table.lines, results, metric)
    if len(table.series) > 1:
        panels[0].legend(frameon=False, fontsize=8)
    return _svg(figure)


def _dots(panel: Any, lines: Sequence[Line], results: Results, metric: str) -> None:
    for position, line in enumerate(lines):
        values = list(results.values(line.row, metric).values())
        panel.plot(values, [position] * len(values), "o", color=COLOURS[0], alpha=0.5, markersize=4)
        if values:
            panel.plot([fmean(values)], [position], "|", color=INK, markersize=12)
    panel.set_yticks(range(len(lines)), [line.label for line in lines])
    panel.set_ylim(len(lines) - 0.5, -0.5)
    panel.set_xlabel(NAMES[metric])


def _curves(panel: Any, table: Table, results: Results, metric: str) -> None:
    if metric == "flops":
        panel.plot(
            table.x,
            [results.padded_flops[int(limit)] for limit in table.x],
            "*-",
            color=RED,
            label="padded to the limit",
        )
        _curve(panel, table.x, table.lines, results, "flops.text", "o--", RED, "as long as they are")
        panel.legend(frameon=False, fontsize=8)
    else:
        for index, (label, colour) in enumerate(zip(table.series, COLOURS, strict=False)):
            lines = table.lines[index * len(table.x) : (index + 1) * len(table.x)]
            _curve(panel, table.x, lines, results, metric, "o-", colour, label)
    if table.name == "figure-4":
        panel.set_xscale("log", base=2)
        panel.set_xticks(table.x, [str(one) for one in table.x], rotation=60)
        panel.minorticks_off()
    panel.set_xlabel(table.x_label)
    panel.set_title(NAMES[metric], fontsize=8, color=INK)


def _curve(
    panel: Any,
    x: Sequence[float],
    lines: Sequence[Line],
    results: Results,
    metric: str,
    style: str,
    colour: str,
    label: str,
) -> None:
    points = [(at, list(results.values(line.row, metric).values())) for at, line in zip(x, lines, strict=True)]
    points = [(at, values) for at, values in points if values]
    spread = [stdev(values) if len(values) > 1 else 0.0 for _, values in points]
    means = [fmean(values) for _, values in points]
    panel.errorbar(
        [at for at, _ in points], means, spread, fmt=style, color=colour, label=label, capsize=2, markersize=4
    )


def _figure(panels: int, height: float, share_y: bool) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * panels + (1.2 if share_y else 0), height), layout="constrained", facecolor="white")
    axes = figure.subplots(1, panels, squeeze=False, sharey=share_y)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8, colors=INK)
        one.xaxis.label.set(size=8, color=INK)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lotlip-data", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
