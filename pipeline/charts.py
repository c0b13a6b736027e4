"""Charts of a page as SVG, drawn by matplotlib: in the page's own text colour, so that they are legible in the dark."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

INK = "#010203"
"""Stands for the page's text colour until the chart is in the page."""
COLOURS = ("#3b7dd8", "#d8743b", "#2f9e6e", "#a05bc4", "#b8912f", "#777777")


def bars(counts: Mapping[str, float], label: str) -> str:
    """One bar a name, the largest on top."""
    names = sorted(counts, key=lambda name: counts[name])
    figure, axes = _figure(max(1.2, 0.34 * len(names) + 0.7))
    axes.barh(names, [counts[name] for name in names], color=COLOURS[0])
    for position, name in enumerate(names):
        axes.annotate(
            f" {counts[name]:,}", (counts[name], position), va="center", color=INK, fontsize=9, annotation_clip=False
        )
    axes.set_xlabel(label)
    axes.margins(x=0.15)
    return _svg(figure)


def histograms(lengths: Mapping[str, Sequence[float]], label: str, bins: int = 40) -> str:
    """One line a name: the share of its values in each bin."""
    import numpy as np

    figure, axes = _figure(2.8)
    every = [value for values in lengths.values() for value in values]
    edges = np.linspace(0, max(float(np.quantile(every, 0.995)), 1.0), bins + 1)
    for (name, values), colour in zip(lengths.items(), COLOURS * len(lengths), strict=False):
        if values:
            counts, _ = np.histogram(values, edges)
            axes.stairs(counts / len(values), edges, label=f"{name} ({np.mean(values):.0f} on average)", color=colour)
    axes.set_xlabel(label)
    axes.set_ylabel("share of texts")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return _svg(figure)


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    for spine in axes.spines.values():
        spine.set_color(INK)
    return figure, axes


def _svg(figure: Any) -> str:
    """The chart as an element of HTML. What was text stays text, escaped by matplotlib."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lotlip-data", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    return drawn[drawn.index("<svg") :].replace(INK, "currentColor")
