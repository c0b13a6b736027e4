"""Figures as SVG. Equal figures give equal bytes."""

import io
from collections.abc import Sequence
from typing import Any

SERIES_COLOURS = ("#3b7dd8", "#d8743b")
INK, RED, GRAY = "#333333", "#c03030", "#999999"


def new_figure(
    columns: int, height: float, share_y: bool = False, rows: int = 1, width: float | None = None
) -> tuple[Any, Sequence[Any]]:
    """A figure with panels side by side, and the panels row by row."""
    from matplotlib.figure import Figure

    width = width or 3.1 * columns + (1.2 if share_y else 0)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, colors=INK)
        panel.xaxis.label.set(size=8, color=INK)
    return figure, panels


def to_svg(figure: Any) -> str:
    """The figure as SVG, the same bytes for the same figure."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lotlip-data", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
