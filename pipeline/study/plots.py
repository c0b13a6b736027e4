"""The plots of the reproduction study as SVG. Equal results give equal bytes."""

from lotlip_data.pipeline.study.comparisons import LEVEL_POINTS, PRIMARY
from lotlip_data.pipeline.study.curves import PLATEAU_SHARE
from lotlip_data.pipeline.study.design import ARMS
from lotlip_data.pipeline.study.figures import GRAY, INK, RED, SERIES_COLOURS, new_figure, to_svg
from lotlip_data.pipeline.study.results import Results, Verdict
from lotlip_data.pipeline.study.statistics import LEVEL

VERDICT_COLOURS = {
    Verdict.HOLDS: SERIES_COLOURS[0],
    Verdict.REVERSED: RED,
    Verdict.LEVEL: INK,
    Verdict.UNDECIDED: GRAY,
    Verdict.UNFINISHED: GRAY,
}
METRIC_NAMES = {"long": "long texts", "twins": "near twins", "short": "short texts", "class": "classes"}


def plot_primary(results: Results) -> str:
    """Every primary comparison: its seeds as dots, its mean, its 95% interval and that of the strictest test."""
    figure, (panel,) = new_figure(1, 0.9 + 0.32 * len(PRIMARY), share_y=True, width=7.4)
    for row, comparison in enumerate(PRIMARY):
        values, difference = results.differences(comparison), results.difference(comparison)
        colour = VERDICT_COLOURS[results.verdict(comparison)]
        panel.plot(values, [row] * len(values), "o", color=colour, alpha=0.25, markersize=3.5, markeredgewidth=0)
        if difference:
            low, high = difference.interval(LEVEL / len(PRIMARY))
            panel.plot([low, high], [row, row], color=colour, linewidth=0.8)
            panel.plot([difference.low, difference.high], [row, row], color=colour, linewidth=3)
            panel.plot([difference.mean], [row], "D", color="white", markeredgecolor=colour, markersize=5)
    panel.axvline(0, color=INK, linewidth=0.6)
    panel.axvspan(-LEVEL_POINTS, LEVEL_POINTS, color=GRAY, alpha=0.15, linewidth=0)
    labels = [f"{comparison.text}, {METRIC_NAMES[comparison.metric]}" for comparison in PRIMARY]
    panel.set_yticks(range(len(PRIMARY)), labels)
    panel.set_ylim(len(PRIMARY) - 0.5, -0.5)
    panel.set_xlabel("difference in percentage points")
    return to_svg(figure)


def plot_curves(results: Results) -> str:
    """The loss of every arm over its steps, one line per seed. The last fifth of the steps is shaded."""
    columns = 5
    rows = -(-len(ARMS) // columns)
    figure, panels = new_figure(columns, 1.5 * rows + 0.3, rows=rows, width=9.0)
    for panel in panels[len(ARMS) :]:
        panel.set_visible(False)
    for panel, (name, arm) in zip(panels, ARMS.items(), strict=False):
        curves = results.curves(name)
        for curve in curves:
            panel.plot(curve["step"], curve["loss"], color=SERIES_COLOURS[0], alpha=0.5, linewidth=0.7)
        if curves:
            last = max(curve["step"][-1] for curve in curves)
            panel.axvspan(0.8 * last, last, color=GRAY, alpha=0.15, linewidth=0)
            panel.set_ylim(bottom=0)
        is_flat = all(fall < PLATEAU_SHARE for fall in results.last_falls(name))
        panel.set_title(arm.label, fontsize=7, color=INK if is_flat else RED)
        panel.tick_params(labelsize=6)
    return to_svg(figure)
