"""Charts as SVG elements, drawn by matplotlib in the page's text colour, so that they are legible in dark mode."""

import io
import textwrap
from collections.abc import Mapping
from typing import Any

from lotlip_data.manifests.text_stats import BIN
from lotlip_data.pipeline.reporting.escaping import escape_invisible

TEXT_COLOUR = "#010203"
"""Placeholder that `_to_svg` replaces with the page's text colour."""
SERIES_COLOURS = ("#3b7dd8", "#d8743b", "#2f9e6e", "#a05bc4", "#b8912f", "#777777")
WIDTH_INCHES, FONT_POINTS = 4.6, 11
"""The width of a phone, so that the text appears at its own size there."""
LABEL_CHARACTERS = 24
"""Characters per line of a bar's label."""
SHOWN_SHARE = 0.995
"""Share of the texts that a length chart shows, so that a few very long texts do not compress the rest."""


def bar_chart(counts: Mapping[str, float], label: str, number_format: str = "{:,}") -> str:
    """Return horizontal bars, the largest on top, each with its name and its number.

    Args:
        counts: The length of each bar, by name. At least one.
        label: Label of the horizontal axis.
        number_format: Format string of the numbers beside the bars.
    """
    names = sorted(counts, key=lambda name: counts[name])
    labels = [textwrap.fill(escape_invisible(name), LABEL_CHARACTERS) for name in names]
    lines = max(text.count("\n") + 1 for text in labels)
    figure, axes = _new_figure(0.7 + (0.15 + 0.19 * lines) * len(labels))
    positions = range(len(names))
    axes.barh(positions, [counts[name] for name in names], color=SERIES_COLOURS[0])
    axes.set_yticks(positions, labels)
    for position, name in enumerate(names):
        beside_bar = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        number = number_format.format(counts[name])
        axes.annotate(number, (counts[name], position), color=TEXT_COLOUR, fontsize=FONT_POINTS, **beside_bar)
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=4)
    axes.margins(x=0.3)
    return _to_svg(figure)


def length_chart(series: Mapping[str, Mapping[str, Any]], label: str) -> str:
    """Return one curve per kind of text: the share of the texts in each range of lengths.

    The axis ends where every curve has shown SHOWN_SHARE of its texts.

    Args:
        series: By name, a mapping with `texts` (their number), `tokens_per_text` (their mean length) and `lengths` (a
            histogram as `TextTally.histogram` returns it).
        label: Label of the horizontal axis.
    """
    figure, axes = _new_figure(3.2)
    last_bin = 1
    for (name, texts), colour in zip(series.items(), SERIES_COLOURS * len(series), strict=False):
        counts = {int(interval.partition("-")[0]) // BIN: count for interval, count in texts["lengths"].items()}
        shares = [counts.get(index, 0) / texts["texts"] for index in range(max(counts) + 1)]
        edges = [BIN * index for index in range(len(shares) + 1)]
        legend = f"{escape_invisible(name)} ({texts['tokens_per_text']:,.0f} on average)"
        axes.stairs(shares, edges, label=legend, color=colour, linewidth=1.6)
        last_bin = max(last_bin, next(end for end in range(1, len(shares) + 1) if sum(shares[:end]) >= SHOWN_SHARE))
    axes.set_xlim(0, BIN * last_bin)
    axes.set_xlabel(label)
    axes.set_ylabel("share of texts")
    figure.legend(loc="outside upper left", frameon=False, fontsize=FONT_POINTS, labelcolor=TEXT_COLOUR)
    return _to_svg(figure)


def _new_figure(height: float) -> tuple[Any, Any]:
    """Return a matplotlib figure of `height` inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=TEXT_COLOUR, labelsize=FONT_POINTS)
    axes.xaxis.label.set(color=TEXT_COLOUR, size=FONT_POINTS)
    axes.yaxis.label.set(color=TEXT_COLOUR, size=FONT_POINTS)
    for spine in axes.spines.values():
        spine.set_color(TEXT_COLOUR)
    return figure, axes


def _to_svg(figure: Any) -> str:
    """Return the figure as an SVG element. Text stays text, which matplotlib escapes."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lotlip-data", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    document = out.getvalue()
    return document[document.index("<svg") :].replace(TEXT_COLOUR, "currentColor")
