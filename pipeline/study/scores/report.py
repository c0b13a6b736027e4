"""The page of the study of scores, study/scores.md: tables, plots and sentences, all from the stored results."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.wording import count
from lotlip_data.pipeline.study import markdown
from lotlip_data.pipeline.study.cells import format_lines
from lotlip_data.pipeline.study.figures import INK, RED, SERIES_COLOURS, new_figure, to_svg
from lotlip_data.pipeline.study.scores.design import ARMS, RATES, ROLES, SCORERS, Role, ScoresDesign
from lotlip_data.pipeline.study.scores.results import ScoresResults

TARGET_AUC = 0.85
"""The AUC of the combined score that the study set out to reach."""
_GAINING: tuple[Role, ...] = ("filtered", "weighted")
_COLOURS = dict(zip(SCORERS, (*SERIES_COLOURS, RED), strict=True))


def write_page(results: ScoresResults, design: ScoresDesign, seeds: int, out: str) -> str:
    """Write `out`/study/scores.md, with its plots and scores.jsonl beside it. Returns the path of the page."""
    folder = storage.join(out, "study")
    contents = {
        "scores-detection.svg": plot_detection(results).encode(),
        "scores-gain.svg": plot_gains(results).encode(),
        "scores.jsonl": format_lines(results.contents),
        "scores.md": render_page(results, design, seeds).encode(),
    }
    for name, content in contents.items():
        storage.replace(storage.join(folder, name), content)
    return storage.join(folder, "scores.md")


def render_page(results: ScoresResults, design: ScoresDesign, seeds: int) -> str:
    """The page in Markdown. Its template is `templates/scores.md`."""
    return markdown.render(
        "scores.md",
        design=design,
        settings=design.settings,
        gallery=design.gallery,
        layers=count(design.text_layers, "layer"),
        scorer_layers=count(design.scorer_layers, "layer"),
        trainings=seeds * len(RATES) * len(ROLES),
        last_seed=seeds - 1,
        progress=_progress(results, seeds),
        detection_table=_detection_table(results),
        detection_sentences=_bullets(_detection_sentences(results)),
        training_table=_training_table(results),
        training_sentences=_bullets(_training_sentences(results)),
        filter_table=_filter_table(results),
    )


def _progress(results: ScoresResults, seeds: int) -> str:
    done, planned = len(results.contents), seeds * len(RATES) * len(ROLES)
    has_all = "All trainings have run" if done == planned else "Not all trainings have run yet"
    what = f"{seeds} seeds × {len(RATES)} error rates × ({len(ARMS)} arms and a scorer)"
    return f"{has_all}: {done} of {planned} ({what}), {results.hours:.1f} hours of one core."


def _detection_table(results: ScoresResults) -> str:
    head = ["errors", "seeds", *(f"{scorer}, statements" for scorer in SCORERS)]
    lines = [[*head, *(f"{scorer}, all sub-captions" for scorer in SCORERS), "wrong sub-captions, %"]]
    for rate in RATES:
        cells = [f"{rate:.0%}", str(len(results.values("scorer", rate, "wrong.all")) or markdown.NOT_RUN)]
        for kind in ("statements", "all"):
            areas = [results.values("scorer", rate, f"auc.{scorer}.{kind}") for scorer in SCORERS]
            cells += [markdown.spread(area.values(), 3) for area in areas]
        lines.append([*cells, markdown.spread(results.values("scorer", rate, "wrong.all").values())])
    return markdown.table(lines)


def _detection_sentences(results: ScoresResults) -> list[str]:
    sentences = []
    for rate in RATES:
        means = {
            (scorer, kind): fmean(values)
            for scorer in SCORERS
            for kind in ("statements", "all")
            if (values := results.values("scorer", rate, f"auc.{scorer}.{kind}").values())
        }
        if not means:
            continue
        combined, everything = means["combined", "statements"], means["combined", "all"]
        best = max(SCORERS, key=lambda scorer: means[scorer, "statements"])
        sentences.append(
            f"At {rate:.0%} errors the combined score has an AUC of {combined:.3f} for statements, "
            f"{_beside_target(combined)} the target of {TARGET_AUC}, and of {everything:.3f} for all sub-captions, "
            f"{_beside_target(everything)} it. {_added(means, best)}"
        )
    return sentences


def _beside_target(value: float) -> str:
    return "at or above" if value >= TARGET_AUC else "below"


def _added(means: dict[tuple[str, str], float], best: str) -> str:
    """Whether the combination is better than its parts."""
    if best == "combined":
        return "For statements no single score is better than the combination."
    lead = means[best, "statements"] - means["combined", "statements"]
    if lead < 0.0005:
        return f"For statements {best} alone is as good."
    return f"For statements {best} alone is better, by {lead:.3f}."


def _training_table(results: ScoresResults) -> str:
    head = ["errors", "seeds", *ARMS]
    lines = [[*head, *(f"gain of {arm}, 95% interval" for arm in _GAINING)]]
    for rate in RATES:
        gains = [results.gain(arm, rate) for arm in _GAINING]
        cells = [f"{rate:.0%}", str(max((gain.seeds for gain in gains if gain), default=markdown.NOT_RUN))]
        cells += [markdown.spread(results.values(arm, rate, "long").values()) for arm in ARMS]
        lines.append([*cells, *map(markdown.interval, gains)])
    return markdown.table(lines)


def _training_sentences(results: ScoresResults) -> list[str]:
    sentences = []
    for arm in _GAINING:
        gains = {rate: gain for rate in RATES if (gain := results.gain(arm, rate))}
        groups = {
            "gains outside the noise": [rate for rate, gain in gains.items() if gain.low > 0],
            "loses outside the noise": [rate for rate, gain in gains.items() if gain.high < 0],
            "shows no difference beyond the noise": [
                rate for rate, gain in gains.items() if gain.low <= 0 <= gain.high
            ],
        }
        found = [
            f"it {verdict} at {markdown.listed([f'{rate:.0%}' for rate in rates])} errors "
            f"({', '.join(markdown.interval(gains[rate]) for rate in rates)})"
            for verdict, rates in groups.items()
            if rates
        ]
        if found:
            sentences.append(f"`{arm}` against `all`: {'; '.join(found)}.")
    clean, noisy = (results.values("all", rate, "long") for rate in (RATES[0], RATES[-1]))
    if common := clean.keys() & noisy.keys():
        loss = fmean(clean[seed] - noisy[seed] for seed in common)
        sentences.append(
            f"The most that filtering could gain: a training on all texts has {loss:.1f} points less with "
            f"{RATES[-1]:.0%} errors than without errors."
        )
    return sentences


def _filter_table(results: ScoresResults) -> str:
    lines = [["errors", "sub-captions kept, %", "wrong statements before, %", "wrong statements after, %"]]
    for rate in RATES:
        before, after = (results.values(arm, rate, "wrong.statements") for arm in ("scorer", "filtered"))
        kept = results.values("filtered", rate, "kept")
        lines.append([f"{rate:.0%}", *(markdown.spread(each.values()) for each in (kept, before, after))])
    return markdown.table(lines)


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences) or "Nothing can be said yet."


def plot_detection(results: ScoresResults) -> str:
    """AUC by error rate: a panel for statements and one for all sub-captions."""
    figure, panels = new_figure(2, 2.6, share_y=True)
    for panel, kind in zip(panels, ("statements", "all"), strict=True):
        for scorer in SCORERS:
            points = {rate: results.values("scorer", rate, f"auc.{scorer}.{kind}") for rate in RATES}
            _plot(panel, {rate: list(values.values()) for rate, values in points.items() if values}, scorer)
        panel.axhline(TARGET_AUC, color=INK, linewidth=0.6, linestyle=":")
        panel.set_title({"statements": "AUC, statements", "all": "AUC, all sub-captions"}[kind], fontsize=8, color=INK)
        panel.set_xlabel("error rate, %")
    panels[0].legend(frameon=False, fontsize=8)
    return to_svg(figure)


def _plot(panel: Any, points: dict[float, list[float]], label: str) -> None:
    means = [fmean(values) for values in points.values()]
    spread = [stdev(values) if len(values) > 1 else 0.0 for values in points.values()]
    x = [100 * rate for rate in points]
    panel.errorbar(x, means, spread, fmt="o-", color=_COLOURS[label], label=label, capsize=2, markersize=4)


def plot_gains(results: ScoresResults) -> str:
    """The gain of each arm by error rate, with its 95% interval."""
    figure, panels = new_figure(1, 2.6, share_y=True)
    for offset, (arm, colour) in enumerate(zip(_GAINING, SERIES_COLOURS, strict=True)):
        gains = {rate: gain for rate in RATES if (gain := results.gain(arm, rate))}
        x = [100 * rate + offset for rate in gains]
        error = [[g.mean - g.low for g in gains.values()], [g.high - g.mean for g in gains.values()]]
        means = [gain.mean for gain in gains.values()]
        panels[0].errorbar(x, means, error, fmt="o", color=colour, label=arm, capsize=2, markersize=4)
    panels[0].axhline(0, color=INK, linewidth=0.6)
    panels[0].set_title("gain in mean R@1 over all texts, points", fontsize=8, color=INK)
    panels[0].set_xlabel("error rate, %")
    panels[0].legend(frameon=False, fontsize=8)
    return to_svg(figure)
