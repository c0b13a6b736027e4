"""Charts of a page as SVG, drawn by matplotlib: in the page's own text colour, so that they are legible in the dark."""

import io
import textwrap
from collections.abc import Mapping
from typing import Any

from lotlip_data.manifests.text_stats import BIN
from lotlip_data.pipeline.reporting.escaping import escape_invisible

INK = "#010203"
"""Stands for the page's text colour until the chart is in the page."""
COLOURS = ("#3b7dd8", "#d8743b", "#2f9e6e", "#a05bc4", "#b8912f", "#777777")
WIDTH, SIZE = 4.6, 11
"""Inches, and points of the text: as wide as a phone, where the text is therefore shown in its own size."""
LINE = 24
"""Characters of a bar's name in one line."""
SHOWN = 0.995
"""The share of the texts whose lengths are shown, so that a few very long ones do not squeeze all others."""


def bars(counts: Mapping[str, float], label: str, form: str = "{:,}") -> str:
    """One bar a name, the largest on top, with its number in the given `form`."""
    ranked = sorted(counts, key=lambda name: counts[name])
    names = [textwrap.fill(escape_invisible(name), LINE) for name in ranked]
    lines = max(name.count("\n") + 1 for name in names)
    figure, axes = _figure(0.7 + (0.15 + 0.19 * lines) * len(names))
    places = range(len(names))
    axes.barh(places, [counts[name] for name in ranked], color=COLOURS[0])
    axes.set_yticks(places, names)
    for place, name in enumerate(ranked):
        beside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(form.format(counts[name]), (counts[name], place), color=INK, fontsize=SIZE, **beside)
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=4)
    axes.margins(x=0.3)
    return _svg(figure)


def lengths(kinds: Mapping[str, Mapping[str, Any]], label: str) -> str:
    """One line a kind of texts: the share of them in each range of tokens.

    Of a kind: `texts`, `tokens_per_text`, and `lengths` as `TextTally.histogram` has them. Ranges beyond SHOWN of the
    texts of every kind are left out.
    """
    figure, axes = _figure(3.2)
    shown = 1
    for (name, one), colour in zip(kinds.items(), COLOURS * len(kinds), strict=False):
        counts = {int(text.partition("-")[0]) // BIN: count for text, count in one["lengths"].items()}
        shares = [counts.get(place, 0) / one["texts"] for place in range(max(counts) + 1)]
        mean = f"{escape_invisible(name)} ({one['tokens_per_text']:,.0f} on average)"
        axes.stairs(shares, [BIN * place for place in range(len(shares) + 1)], label=mean, color=colour, linewidth=1.6)
        shown = max(shown, next(end for end in range(1, len(shares) + 1) if sum(shares[:end]) >= SHOWN))
    axes.set_xlim(0, BIN * shown)
    axes.set_xlabel(label)
    axes.set_ylabel("share of texts")
    figure.legend(loc="outside upper left", frameon=False, fontsize=SIZE, labelcolor=INK)
    return _svg(figure)


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=SIZE)
    axes.xaxis.label.set(color=INK, size=SIZE)
    axes.yaxis.label.set(color=INK, size=SIZE)
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
