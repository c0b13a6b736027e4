"""The study's page, study/index.md: a plot and five sentences, then the evidence. All of it is from stored results."""

from collections import Counter
from collections.abc import Sequence

from lotlip_data.manifests import storage
from lotlip_data.pipeline.study import markdown
from lotlip_data.pipeline.study.cells import format_lines
from lotlip_data.pipeline.study.comparisons import COMPARISONS, LEVEL_POINTS, PRIMARY, TOPICS, Comparison, Topic
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
        secondaries=len(COMPARISONS) - len(PRIMARY),
        excluding=sum(_result(each, results).startswith("excludes") for each in COMPARISONS if not each.primary),
        false_alarms=round(LEVEL * (len(COMPARISONS) - len(PRIMARY))),
        strict_confidence=f"{1 - LEVEL / len(PRIMARY):.1%}",
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
    counts = f"{done} of {planned} ({len(ARMS)} arms), {results.hours:.1f} hours of one core."
    if results.is_finished:
        return f"All trainings have run: {counts}"
    return f"**Not all trainings have run**: {counts} The figures below are interim ones, which will change."


def _sentences(results: Results) -> str:
    """One sentence that counts the verdicts, and one per question of the topics, as a list."""
    sentences = [f"**In all.** {_counts(PRIMARY, results, 'primary comparison')}."]
    for question in dict.fromkeys(topic.question for topic in TOPICS):
        topics = [topic for topic in TOPICS if topic.question == question]
        primary = [each for topic in topics for each in topic.comparisons if each.primary]
        counts, statements = _counts(primary, results, "comparison"), _statements(primary, results)
        sentences.append(f"**{question}** {counts}{': ' if statements else ''}{'; '.join(statements)}.")
    return "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))


def _counts(comparisons: Sequence[Comparison], results: Results, name: str) -> str:
    """How many comparisons have which verdict: `Of 7 comparisons, 2 hold and 5 are undecided`."""
    verdicts = Counter(results.verdict(comparison) for comparison in comparisons)
    number = len(comparisons)
    if len(verdicts) == 1:
        (verdict,) = verdicts
        return f"All {number} {name}s {_plural(verdict)}" if number > 1 else f"The {name} {verdict}"
    counts = [
        f"{verdicts[verdict]} {_plural(verdict) if verdicts[verdict] > 1 else verdict}"
        for verdict in Verdict
        if verdicts[verdict]
    ]
    return f"Of {number} {name}s, {markdown.listed(counts)}"


def _plural(verdict: Verdict) -> str:
    return "hold" if verdict is Verdict.HOLDS else verdict.replace("is ", "are ")


def _statements(comparisons: Sequence[Comparison], results: Results) -> list[str]:
    """What comparisons show, one statement per pair and outcome. None for unfinished ones.

    A pair that is better on a primary metric may be worse on a secondary one, which belongs to the answer.
    """
    found: dict[str, list[str]] = {}
    costs: dict[str, str] = {}
    for comparison in comparisons:
        verdict, difference = results.verdict(comparison), results.difference(comparison)
        if verdict is Verdict.UNFINISHED or difference is None:
            continue
        statement = _statement(comparison, verdict, difference)
        found.setdefault(statement, []).append(f"{METRIC_NAMES[comparison.metric]} ({markdown.interval(difference)})")
        if verdict is Verdict.HOLDS and (losses := _losses(comparison, results)):
            costs[statement] = f", and lower on {markdown.listed(losses)} in secondary comparisons"
    return [
        f"{statement} on {markdown.listed(metrics)}{costs.get(statement, '')}" for statement, metrics in found.items()
    ]


def _statement(comparison: Comparison, verdict: Verdict, difference: Difference) -> str:
    """A verdict as words about both sides."""
    left, right = comparison.left, comparison.right
    if verdict is Verdict.LEVEL:
        return f"{left} is within {LEVEL_POINTS:g} points of {right}"
    if verdict is Verdict.UNDECIDED:
        return f"{left} vs. {right} is undecided"
    return f"{left} is {'better' if difference.mean > 0 else 'worse'} than {right}"


def _losses(comparison: Comparison, results: Results) -> list[str]:
    """The secondary metrics on which the left side of a comparison is lower, by their whole interval."""
    same = [each for each in COMPARISONS if not each.primary and each.weights == comparison.weights]
    differences = [(each, results.difference(each)) for each in same]
    return [
        f"{METRIC_NAMES[each.metric]} ({markdown.interval(difference)})"
        for each, difference in differences
        if difference and difference.high < 0
    ]


def _primary_table(results: Results) -> str:
    rows = [["comparison", "metric", "verdict", "here, 95% interval", "p (Holm)", "seeds that agree", "detectable"]]
    for comparison in PRIMARY:
        difference, differences = results.difference(comparison), results.differences(comparison)
        cells = [comparison.text, METRIC_NAMES[comparison.metric], str(results.verdict(comparison))]
        cells.append(markdown.interval(difference))
        if difference and results.is_finished:
            agree = sum(value * comparison.sign > 0 for value in differences)
            smallest = smallest_effect(difference.deviation, difference.seeds, LEVEL / len(PRIMARY))
            cells += [_p_value(results.adjusted[comparison]), f"{agree} of {len(differences)}", f"{smallest:.1f}"]
        else:
            cells += [NOT_RUN] * 3
        rows.append(cells)
    return markdown.table(rows, text_columns=3)


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _plateau_sentence(results: Results) -> str:
    falls = {arm.label: results.last_falls(arm.name) for arm in ARMS.values()}
    steep = {label: sum(fall >= PLATEAU_SHARE for fall in of_arm) for label, of_arm in falls.items()}
    missed = [f"{label} ({count} of {len(falls[label])} trainings)" for label, count in steep.items() if count]
    if not any(falls.values()):
        return "Nothing has run yet."
    return f"These arms miss it: {'; '.join(missed)}." if missed else "All trainings of all arms meet it."


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
    rows = [["comparison", "metric", "expected", "seeds", "here, 95% interval", "result"]]
    for comparison in topic.comparisons:
        difference = results.difference(comparison)
        text = f"**{comparison.text}**" if comparison.primary else comparison.text
        seeds = str(len(results.differences(comparison)) or NOT_RUN)
        cells = [text, METRIC_NAMES[comparison.metric], _expected(comparison), seeds, markdown.interval(difference)]
        rows.append([*cells, _result(comparison, results)])
    return markdown.table(rows, text_columns=6)


def _expected(comparison: Comparison) -> str:
    """The direction that a source states, with the paper's difference."""
    direction = {1: "higher", 0: NOT_RUN if comparison.printed is None else "equal", -1: "lower"}[comparison.sign]
    return direction if comparison.printed is None else f"{direction} ({comparison.printed:+.1f})"


def _result(comparison: Comparison, results: Results) -> str:
    """The verdict on a primary comparison; of a secondary one, what its interval says without any correction."""
    if comparison.primary:
        return str(results.verdict(comparison))
    difference = results.difference(comparison)
    if difference is None or not results.is_finished:
        return NOT_RUN
    if difference.low <= 0 <= difference.high:
        return "includes 0"
    directions = {1: ", as expected", 0: "", -1: ", opposite"}
    return f"excludes 0{directions[comparison.sign * (1 if difference.mean > 0 else -1)]}"
