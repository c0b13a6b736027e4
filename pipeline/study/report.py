"""The study's page, study/index.md: a plot and five sentences, then the evidence. All of it is from stored results."""

from collections import Counter
from collections.abc import Sequence

from lotlip_data.manifests import storage
from lotlip_data.pipeline.study import markdown
from lotlip_data.pipeline.study.cells import format_lines
from lotlip_data.pipeline.study.comparisons import LEVEL_POINTS, PRIMARY, TOPICS, Comparison, Topic
from lotlip_data.pipeline.study.curves import PLATEAU_SHARE
from lotlip_data.pipeline.study.design import ARMS, FIRST_DEVELOPMENT_SEED, Design, describe_seeds
from lotlip_data.pipeline.study.markdown import NOT_RUN
from lotlip_data.pipeline.study.paper_results import PRINTED
from lotlip_data.pipeline.study.plots import METRIC_NAMES, plot_curves, plot_primary
from lotlip_data.pipeline.study.results import Results, Verdict
from lotlip_data.pipeline.study.statistics import LEVEL, POWER, Difference, smallest_effect
from lotlip_data.synthetic.hard_scenes import CAPTIONER_ERRORS

COLUMNS = {
    "person.t2i.R@1": "person T2I",
    "person.i2t.R@1": "I2T",
    "sharegpt4v.t2i.R@1": "captioner T2I",
    "sharegpt4v.i2t.R@1": "I2T",
    "twins": "near twins",
    "short.t2i.R@1": "short T2I",
    "short.i2t.R@1": "I2T",
    "class.top1": "class",
}
"""The figures and metrics that a table shows, with their headings."""
_PAPER_METRICS = ("long", "short", "class")


def write_page(results: Results, design: Design, out: str) -> str:
    """Write `out`/study/index.md, with its plots and results.jsonl beside it. Returns the path of the page."""
    contents = {
        "primary.svg": plot_primary(results).encode(),
        "curves.svg": plot_curves(results).encode(),
        "results.jsonl": format_lines(results.contents),
        "index.md": render_page(results, design).encode(),
    }
    for name, content in contents.items():
        storage.replace(storage.join(out, "study", name), content)
    return storage.join(out, "study", "index.md")


def render_page(results: Results, design: Design) -> str:
    """The page in Markdown. Its template is `templates/study.md`."""
    return markdown.render(
        "study.md",
        design=design,
        settings=design.settings,
        gallery=design.gallery,
        noise=design.noise,
        captioner_errors=CAPTIONER_ERRORS,
        twins_searched=design.gallery.groups * (1 + design.gallery.twins),
        progress=_progress(results),
        sentences=_sentences(results),
        primaries=len(PRIMARY),
        primary_table=_primary_table(results),
        level=f"{LEVEL:.0%}",
        level_points=f"{LEVEL_POINTS:g}",
        power=f"{POWER:.0%}",
        seeds=describe_seeds(results.planned),
        first_development_seed=FIRST_DEVELOPMENT_SEED,
        plateau_share=f"{PLATEAU_SHARE:.0%}",
        plateau_sentence=_plateau_sentence(results),
        plateau_table=_plateau_table(results),
        sections="\n\n".join(_section(topic, results) for topic in TOPICS),
    )


def _progress(results: Results) -> str:
    done, planned = len(results.contents), sum(map(len, results.planned.values()))
    has_all = "All trainings have run" if done == planned else "**Not all trainings have run**"
    return f"{has_all}: {done} of {planned} ({len(ARMS)} arms), {results.hours:.1f} hours of one core."


def _sentences(results: Results) -> str:
    """One sentence that counts the verdicts, and one per subject of the topics, as a list."""
    verdicts = Counter(results.verdict(comparison) for comparison in PRIMARY)
    counts = [f"{verdicts[verdict]} {_plural(verdict, verdicts[verdict])}" for verdict in Verdict if verdicts[verdict]]
    sentences = [f"**In all.** Of the {len(PRIMARY)} primary comparisons, {_listed(counts)}."]
    for subject in dict.fromkeys(topic.subject for topic in TOPICS):
        by_text: dict[str, list[Comparison]] = {}
        for comparison in (each for topic in TOPICS if topic.subject == subject for each in topic.comparisons):
            if comparison.primary:
                by_text.setdefault(comparison.text, []).append(comparison)
        statements = [_statement(text, comparisons, results) for text, comparisons in by_text.items()]
        sentences.append(f"**{subject}.** {'; '.join(statements)}.")
    return "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))


def _statement(text: str, comparisons: Sequence[Comparison], results: Results) -> str:
    """What the metrics of a comparison show: `A vs. B: better on long texts (+3.1 [+1.0, +5.2]), unfinished on …`."""
    found: dict[str, list[str]] = {}
    for comparison in comparisons:
        verdict, difference = results.verdict(comparison), results.difference(comparison)
        shown = "" if verdict is Verdict.UNFINISHED else f" ({markdown.interval(difference)})"
        found.setdefault(_outcome(verdict, comparison), []).append(METRIC_NAMES[comparison.metric] + shown)
    return f"{text}: " + ", ".join(f"{outcome} on {_listed(metrics)}" for outcome, metrics in found.items())


def _outcome(verdict: Verdict, comparison: Comparison) -> str:
    """A verdict as an adjective of what is compared."""
    if verdict is Verdict.HOLDS:
        return "better" if comparison.sign > 0 else "worse"
    if verdict is Verdict.REVERSED:
        return "unexpectedly worse" if comparison.sign > 0 else "unexpectedly better"
    return verdict.removeprefix("is ")


def _plural(verdict: Verdict, number: int) -> str:
    plurals = {"holds": "hold"}
    return plurals.get(verdict, verdict.replace("is ", "are ")) if number > 1 else str(verdict)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _primary_table(results: Results) -> str:
    rows = [["comparison", "metric", "verdict", "here, 95% interval", "p (Holm)", "seeds that agree", "found from"]]
    for comparison in PRIMARY:
        difference, differences = results.difference(comparison), results.differences(comparison)
        cells = [comparison.text, METRIC_NAMES[comparison.metric], str(results.verdict(comparison))]
        if difference:
            agree = sum(value * comparison.sign > 0 for value in differences)
            smallest = smallest_effect(difference.deviation, difference.seeds, LEVEL / len(PRIMARY))
            cells += [markdown.interval(difference), _p_value(results.adjusted[comparison])]
            cells += [f"{agree} of {len(differences)}", f"{smallest:.1f}"]
        else:
            cells += [NOT_RUN] * 4
        rows.append(cells)
    return markdown.table(rows, text_columns=3)


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _plateau_sentence(results: Results) -> str:
    steep = [arm.label for arm in ARMS.values() if any(fall >= PLATEAU_SHARE for fall in results.last_falls(arm.name))]
    if not any(results.curves(name) for name in ARMS):
        return "Nothing has run yet."
    if not steep:
        return "Every training of every arm meets the criterion."
    return f"These arms have trainings that do not meet it, so they show a state and not a plateau: {_listed(steep)}."


def _plateau_table(results: Results) -> str:
    rows = [["arm", "seeds", "last loss", "fall in the last fifth, %", "largest", "CPU seconds"]]
    for name, arm in ARMS.items():
        falls = [100 * fall for fall in results.last_falls(name)]
        last = [curve["loss"][-1] for curve in results.curves(name)]
        largest = f"{max(falls):.1f}" if falls else NOT_RUN
        cells = [markdown.spread(last, 2), markdown.spread(falls), largest, markdown.spread(results.seconds(name), 0)]
        rows.append([arm.label, str(len(falls) or NOT_RUN), *cells])
    return markdown.table(rows, text_columns=1)


def _section(topic: Topic, results: Results) -> str:
    parts = [
        f"## {topic.name}",
        f"**The claim** ({topic.source}): {topic.claim}",
        topic.note,
        _result_table(topic, results),
        _comparison_table(topic, results),
    ]
    return "\n\n".join(part for part in parts if part)


def _result_table(topic: Topic, results: Results) -> str:
    """Mean and standard deviation per arm and figure, beside the paper's values."""
    printed = any(name in PRINTED for name in topic.arms)
    paper = [f"*paper: {METRIC_NAMES[metric]}*" for metric in _PAPER_METRICS] if printed else []
    rows = [["", "seeds", *COLUMNS.values(), *paper]]
    for name in topic.arms:
        cells = [markdown.spread(results.values(name, figure).values()) for figure in COLUMNS]
        values = PRINTED.get(name, {})
        cells += [f"*{values[metric]:.1f}*" if values else "" for metric in _PAPER_METRICS] if printed else []
        rows.append([ARMS[name].label, str(len(results.values(name, "long")) or NOT_RUN), *cells])
    return markdown.table(rows, text_columns=1)


def _comparison_table(topic: Topic, results: Results) -> str:
    """All comparisons of a topic, with the paper's direction. Primary ones are in bold."""
    rows = [["comparison", "metric", "expected", "here, 95% interval", "direction"]]
    for comparison in topic.comparisons:
        difference = results.difference(comparison)
        expected = "higher" if comparison.sign > 0 else "lower"
        if comparison.printed is not None:
            expected += f" ({comparison.printed:+.1f})"
        text = f"**{comparison.text}**" if comparison.primary else comparison.text
        cells = [text, METRIC_NAMES[comparison.metric], expected, markdown.interval(difference)]
        rows.append([*cells, _direction(comparison, difference)])
    return markdown.table(rows, text_columns=5)


def _direction(comparison: Comparison, difference: Difference | None) -> str:
    """Whether the direction is the expected one, without a correction for the number of comparisons."""
    if difference is None:
        return NOT_RUN
    if difference.low <= 0 <= difference.high:
        return "not told"
    return "as expected" if difference.mean * comparison.sign > 0 else "the other way"
