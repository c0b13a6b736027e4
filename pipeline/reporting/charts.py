"""Charts as SVG elements, drawn by matplotlib in the page's text colour, so that they are legible in dark mode."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lotlip_data.manifests.text_stats import BIN
from lotlip_data.pipeline.reporting.escaping import escape_invisible

TEXT_COLOUR = "#010203"
"""Placeholder that `_to_svg` replaces with the page's text colour."""
SERIES_COLOURS = ("#3b7dd8", "#d8743b", "#2f9e6e", "#a05bc4", "#b8912f", "#777777")
WIDTH_INCHES, FONT_POINTS = 4.6, 11
"""The width of a phone, so that the text appears at its own size there."""
SMALL_WIDTH_INCHES = 3.2
"""The width of charts of which three stand side by side on a desktop."""
LABEL_CHARACTERS = 24
"""Characters per line of a bar's label."""
SHOWN_SHARE = 0.995
"""Share of the texts that a length chart shows, so that a few very long texts do not compress the rest."""
LINE_STYLES = ("-", "--", "-.", ":")
"""Of the curves of a chart, which nobody has to tell apart by colour alone."""
WIDE_RANGE = 100.0
"""Scores above 0 whose extremes differ by this factor are drawn on a logarithmic axis."""
SHOWN_PERCENTILES = (1, 99)
"""Between which a chart of scores extends, so that a few extreme scores do not compress the rest."""
MANY_SERIES = 4
"""With more kinds of text than this, a length chart shows a row for each one instead of overlapping curves."""


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
    axes.set_ylim(-0.6, len(names) - 0.4)
    for position, name in enumerate(names):
        beside_bar = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        number = number_format.format(counts[name])
        axes.annotate(number, (counts[name], position), color=TEXT_COLOUR, fontsize=FONT_POINTS, **beside_bar)
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=4, integer=all(isinstance(count, int) for count in counts.values()))
    longest_number = max(len(number_format.format(count)) for count in counts.values())
    axes.set_xlim(0, max(counts.values()) * (1.03 + 0.045 * longest_number) or 1)
    return _to_svg(figure)


def length_chart(series: Mapping[str, Mapping[str, Any]], label: str) -> str:
    """Return the lengths of each kind of text: one curve each, or for many kinds, one row each.

    A curve is the share of the texts in each range of lengths. The axis ends where every curve has shown SHOWN_SHARE of
    its texts. A row has a line from the 5th to the 95th percentile, a bar from the 25th to the 75th, and the median.

    Args:
        series: By name, a mapping with `texts` (their number), `tokens_per_text` (their mean length) and `lengths` (a
            histogram as `TextTally.histogram` returns it).
        label: Label of the horizontal axis.
    """
    if len(series) > MANY_SERIES:
        return _interval_chart(series, label)
    figure, axes = _new_figure(3.2)
    last_bin = 1
    for (name, texts), colour in zip(series.items(), SERIES_COLOURS * len(series), strict=False):
        counts = _bin_counts(texts["lengths"])
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


def _interval_chart(series: Mapping[str, Mapping[str, Any]], label: str) -> str:
    """Return one row per kind of text, in the given order from the top; the arguments of `length_chart`."""
    rows = {
        f"{textwrap.fill(escape_invisible(name), LABEL_CHARACTERS)}\n({texts['tokens_per_text']:,.0f} on average)": (
            _percentiles(texts["lengths"], (0.05, 0.25, 0.5, 0.75, 0.95))
        )
        for name, texts in series.items()
    }
    figure, axes = _rows_of_percentiles(rows)
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    return _to_svg(figure)


def _rows_of_percentiles(rows: Mapping[str, Sequence[float]]) -> tuple[Any, Any]:
    """Return a figure and its axes with a row per label, from the top: the 5th, 25th, 50th, 75th, 95th percentile."""
    lines = max(label.count("\n") + 1 for label in rows)
    figure, axes = _new_figure(0.7 + (0.08 + 0.17 * lines) * len(rows))
    for position, (low, quarter, median, three_quarters, high) in enumerate(reversed(list(rows.values()))):
        axes.plot([low, high], [position, position], color=SERIES_COLOURS[0], linewidth=1.4, solid_capstyle="butt")
        axes.barh(position, three_quarters - quarter, left=quarter, height=0.5, color=SERIES_COLOURS[0])
        axes.plot([median, median], [position - 0.32, position + 0.32], color=TEXT_COLOUR, linewidth=2)
    axes.set_yticks(range(len(rows)), reversed(list(rows)))
    axes.tick_params(axis="y", labelsize=FONT_POINTS - 1)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    return figure, axes


def score_chart(series: Mapping[str, Mapping[str, Any]], label: str, limits: Sequence[float] = ()) -> str:
    """Return the distribution of scores: the share of them below each score, one curve each; for many, a row each.

    A row has a line from the 5th to the 95th percentile, a bar from the 25th to the 75th, and the median.

    Args:
        series: By name, a summary of `ScoreTally.to_dict` with `percentiles` and at least one score.
        label: Label of the horizontal axis.
        limits: Scores that are marked by vertical lines.
    """
    low, high = (
        pick(summary["percentiles"][percent] for summary in series.values())
        for pick, percent in zip((min, max), SHOWN_PERCENTILES, strict=True)
    )
    if len(series) > MANY_SERIES:
        figure, axes = _rows_of_percentiles(
            {
                textwrap.fill(escape_invisible(name), LABEL_CHARACTERS): [
                    summary["percentiles"][percent] for percent in (5, 25, 50, 75, 95)
                ]
                for name, summary in series.items()
            }
        )
    else:
        figure, axes = _new_figure(3.2)
        for number, (name, summary) in enumerate(series.items()):
            style = {"color": SERIES_COLOURS[number], "linestyle": LINE_STYLES[number], "linewidth": 1.6}
            axes.plot(summary["percentiles"], range(101), label=escape_invisible(name), **style)
        axes.set_ylabel("% with a lower score")
        axes.set_ylim(0, 100)
        figure.legend(loc="outside upper left", frameon=False, fontsize=FONT_POINTS, labelcolor=TEXT_COLOUR)
    low, high = min([low, *limits]), max([high, *limits])
    is_wide = low > 0 and high / low > WIDE_RANGE
    if is_wide:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.2, high * 1.2)
    else:
        margin = 0.03 * (high - low) or 1.0
        axes.set_xlim(low - margin, high + margin)
        axes.locator_params(axis="x", nbins=5)
    for limit in limits:
        axes.axvline(limit, color=TEXT_COLOUR, linewidth=1, linestyle=(0, (1, 2)))
    axes.set_xlabel(label)
    return _to_svg(figure)


def roc_chart(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Return ROC curves by name: points (share of the wrong, share of the correct), from (0, 0) to (1, 1)."""
    figure, axes = _new_figure(4.4)
    axes.plot([0, 1], [0, 1], color=TEXT_COLOUR, linewidth=0.8, linestyle=":")
    for number, (name, points) in enumerate(curves.items()):
        style = {"color": SERIES_COLOURS[number % len(SERIES_COLOURS)], "linestyle": LINE_STYLES[number % 4]}
        axes.plot(*zip(*points, strict=True), label=escape_invisible(name), linewidth=1.6, **style)
    axes.set_xlabel("share of the wrong ones kept")
    axes.set_ylabel("share of the correct ones kept")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    figure.legend(loc="outside upper left", frameon=False, fontsize=FONT_POINTS, labelcolor=TEXT_COLOUR)
    return _to_svg(figure)


def reliability_chart(rows: Sequence[Mapping[str, Any]], label: str) -> str:
    """Return the share of correct labels by score, with its interval of 95%: rows of `calibration_table`."""
    figure, axes = _new_figure(2.6, SMALL_WIDTH_INCHES)
    scores, shares = ([row[name] for row in rows] for name in ("mean", "share"))
    below = [row["share"] - row["low"] for row in rows]
    above = [row["high"] - row["share"] for row in rows]
    axes.errorbar(scores, shares, [below, above], color=SERIES_COLOURS[0], marker="o", markersize=4, linewidth=1.4)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(label)
    axes.set_ylabel("share correct")
    axes.locator_params(axis="x", nbins=4)
    return _to_svg(figure)


def loss_chart(steps: Sequence[float], losses: Sequence[float]) -> str:
    """Return the loss of one training over its steps. Both have the same length, at least 1."""
    figure, axes = _new_figure(2.1, SMALL_WIDTH_INCHES)
    axes.plot(steps, losses, color=SERIES_COLOURS[0], linewidth=1.4, marker="." if len(steps) == 1 else None)
    axes.set_xlim(0, max(steps) or 1)
    axes.set_xlabel("steps")
    axes.set_ylabel("loss")
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=5)
    return _to_svg(figure)


def _bin_counts(lengths: Mapping[str, int]) -> dict[int, int]:
    """Return a histogram of `TextTally.histogram` by the number of the bin."""
    return {int(interval.partition("-")[0]) // BIN: count for interval, count in lengths.items()}


def _percentiles(lengths: Mapping[str, int], shares: Sequence[float]) -> list[float]:
    """Return the lengths below which these shares of the texts are, interpolated within the bins of a histogram."""
    counts = _bin_counts(lengths)
    edges, reached = [0.0], [0.0]
    for number in sorted(counts):
        if BIN * number > edges[-1]:
            edges.append(float(BIN * number))
            reached.append(reached[-1])
        edges.append(float(BIN * (number + 1)))
        reached.append(reached[-1] + counts[number])
    return [_interpolate(share * reached[-1], reached, edges) for share in shares]


def _interpolate(value: float, reached: Sequence[float], edges: Sequence[float]) -> float:
    index = next(
        index for index in range(1, len(reached)) if reached[index] >= value and reached[index] > reached[index - 1]
    )
    part = (value - reached[index - 1]) / (reached[index] - reached[index - 1])
    return edges[index - 1] + part * (edges[index] - edges[index - 1])


def _new_figure(height: float, width: float = WIDTH_INCHES) -> tuple[Any, Any]:
    """Return a matplotlib figure of `width` and `height` inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
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
