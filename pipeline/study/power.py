"""The power calculation, study/power.md: how many seeds show which effect, from trainings of development seeds."""

from collections.abc import Sequence
from statistics import fmean

from lotlip_data.manifests import storage
from lotlip_data.pipeline.study import markdown
from lotlip_data.pipeline.study.cells import format_lines
from lotlip_data.pipeline.study.comparisons import PRIMARY, Comparison
from lotlip_data.pipeline.study.design import ARMS, FIRST_DEVELOPMENT_SEED, Design, describe_seeds, plan_seeds
from lotlip_data.pipeline.study.markdown import NOT_RUN
from lotlip_data.pipeline.study.plots import METRIC_NAMES, plot_curves
from lotlip_data.pipeline.study.results import Results
from lotlip_data.pipeline.study.statistics import LEVEL, POWER, largest_deviation, needed_seeds, smallest_effect

SEED_COUNTS = (8, 12, 16)
EFFECTS = (2.0, 3.0, 5.0)
"""Effects in percentage points for which the page states the needed seeds."""
SLOWER = 1.25
"""The time that a slower machine takes, for which the study should still be short."""
CONFIDENCE = 0.8
"""Confidence of the one-sided upper bound of a standard deviation, from which the power is calculated."""


def write_power_page(results: Results, design: Design, out: str) -> str:
    """Write `out`/study/power.md, with pilots.jsonl and the pilots' loss curves beside it. Returns the page's path."""
    contents = {
        "pilot-curves.svg": plot_curves(results).encode(),
        "pilots.jsonl": format_lines(results.contents),
        "power.md": render_power_page(results, design).encode(),
    }
    for name, content in contents.items():
        storage.replace(storage.join(out, "study", name), content)
    return storage.join(out, "study", "power.md")


def render_power_page(results: Results, design: Design) -> str:
    """The page in Markdown, for results of development seeds. Its template is `templates/power.md`."""
    deviations = [_deviation(comparison, results) for comparison in PRIMARY]
    return markdown.render(
        "power.md",
        trainings=len(results.contents),
        first_development_seed=FIRST_DEVELOPMENT_SEED,
        seeds=describe_seeds(plan_seeds(pilot=False)),
        steps=design.steps,
        primaries=len(PRIMARY),
        level=f"{LEVEL:.0%}",
        strict_level=f"{LEVEL / len(PRIMARY):.2%}",
        power=f"{POWER:.0%}",
        confidence=f"{CONFIDENCE:.0%}",
        pilot_table=_pilot_table(results),
        detectable_table=_detectable_table(deviations),
        needed_table=_needed_table(deviations),
        cost=_cost(results),
    )


def _deviation(comparison: Comparison, results: Results) -> float | None:
    """The upper bound of the standard deviation of a comparison's differences.

    A comparison without pilots has the largest bound of those on the same metric; None if there is none.
    """
    own = _own_deviation(comparison, results)
    if own is not None:
        return own
    others = (_own_deviation(each, results) for each in PRIMARY if each.metric == comparison.metric)
    return max((each for each in others if each is not None), default=None)


def _own_deviation(comparison: Comparison, results: Results) -> float | None:
    difference = results.difference(comparison)
    return largest_deviation(difference.deviation, difference.seeds, CONFIDENCE) if difference else None


def _pilot_table(results: Results) -> str:
    rows = [["comparison", "metric", "seeds", "mean", "standard deviation", "its upper bound"]]
    for comparison in PRIMARY:
        difference = results.difference(comparison)
        cells = [comparison.text, METRIC_NAMES[comparison.metric]]
        if difference:
            bound = largest_deviation(difference.deviation, difference.seeds, CONFIDENCE)
            cells += [str(difference.seeds), f"{difference.mean:+.1f}", f"{difference.deviation:.1f}", f"{bound:.1f}"]
        else:
            cells += [NOT_RUN] * 4
        rows.append(cells)
    return markdown.table(rows, text_columns=2)


def _detectable_table(deviations: Sequence[float | None]) -> str:
    """The smallest effect per comparison and number of seeds: alone, and by the strictest test of Holm's procedure."""
    rows = [["comparison", "metric", *(f"{count} seeds" for count in SEED_COUNTS)]]
    for comparison, deviation in zip(PRIMARY, deviations, strict=True):
        cells = [comparison.text, METRIC_NAMES[comparison.metric]]
        for count in SEED_COUNTS:
            if deviation is None:
                cells.append(NOT_RUN)
                continue
            levels = (LEVEL, LEVEL / len(PRIMARY))
            cells.append(" / ".join(f"{smallest_effect(deviation, count, level):.1f}" for level in levels))
        rows.append(cells)
    return markdown.table(rows, text_columns=2)


def _needed_table(deviations: Sequence[float | None]) -> str:
    """The seeds that the strictest test needs for an effect."""
    rows = [["comparison", "metric", *(f"{effect:g} points" for effect in EFFECTS)]]
    for comparison, deviation in zip(PRIMARY, deviations, strict=True):
        needed = [
            NOT_RUN if deviation is None else str(needed_seeds(effect, deviation, LEVEL / len(PRIMARY), 200) or "> 200")
            for effect in EFFECTS
        ]
        rows.append([comparison.text, METRIC_NAMES[comparison.metric], *needed])
    return markdown.table(rows, text_columns=2)


def _cost(results: Results) -> str:
    """What the planned final trainings cost. An arm without pilots is taken to cost what the others do on average."""
    known = {name: fmean(seconds) for name in ARMS if (seconds := results.seconds(name))}
    if not known:
        return "No pilot has run yet."
    mean, planned = fmean(known.values()), plan_seeds(pilot=False)
    total = sum(len(seeds) * known.get(name, mean) for name, seeds in planned.items())
    trainings = sum(map(len, planned.values()))
    return (
        f"A training with its evaluation takes {mean:.0f} CPU seconds on average over the arms. The {trainings} final "
        f"trainings take {total:,.0f} CPU seconds: {total / 7200:.1f} hours of two cores, or "
        f"{SLOWER * total / 7200:.1f} hours on a machine that takes {SLOWER:g} times as long."
    )
