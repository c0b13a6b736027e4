"""The study's page, study/index.md: for each table and figure the results beside the paper's, and what they show."""

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from statistics import fmean, stdev

from lotlip_data.manifests import storage
from lotlip_data.pipeline.study.experiments import EXPERIMENTS, Design, Experiment, distinct_experiments
from lotlip_data.pipeline.study.paper_claims import LEVEL_POINTS, TABLES, Claim, Table, TableRow
from lotlip_data.pipeline.study.plots import plot
from lotlip_data.pipeline.study.results import FAR_APART_FACTOR, FAR_APART_POINTS, Results, format_text
from lotlip_data.pipeline.study.significance import MIN_SEEDS, Verdict
from lotlip_data.synthetic.hard_scenes import CAPTIONER_ERRORS

METRIC_NAMES = {
    "long": "long texts",
    "short": "short texts",
    "class": "classes",
    "unrelated": "texts of 12–20 sentences",
    "detailed": "texts of near twins",
}
COLUMNS = {
    "long": {
        "person.t2i.R@1": "person T2I",
        "person.i2t.R@1": "I2T",
        "sharegpt4v.t2i.R@1": "captioner T2I",
        "sharegpt4v.i2t.R@1": "I2T",
    },
    "unrelated": {"unrelated.t2i.R@1": "12–20 sentences T2I", "unrelated.i2t.R@1": "I2T"},
    "detailed": {"detailed.t2i.R@1": "near twins T2I", "detailed.i2t.R@1": "I2T"},
    "short": {"short.t2i.R@1": "short T2I", "short.i2t.R@1": "I2T"},
    "class": {"class.top1": "class"},
}
"""The figures that a table shows, by metric, with their headings."""
EXTRA_COLUMNS = {
    "table-11": {"short.t2i.R@5": "short T2I R@5", "short.i2t.R@5": "I2T R@5"},
    "figure-4": {
        "unrelated.t2i.most": "at most T2I",
        "unrelated.i2t.most": "I2T",
        "detailed.t2i.most": "near twins at most T2I",
        "detailed.i2t.most": "I2T",
        "unrelated.cut": "texts truncated",
        "flops.limit": "MFLOP at the limit",
        "flops.text": "MFLOP per text",
    },
}
"""More figures of single tables, with their headings."""
NOT_RUN, FAR_APART_MARK = "–", "†"
_DIRECTIONS = {1: "higher", -1: "lower", 0: "level"}

_PHRASES = {
    Verdict.HOLDS: ("holds outside the noise", "hold outside the noise"),
    Verdict.LEANS: ("leans the paper's way within the noise", "lean the paper's way within the noise"),
    Verdict.LEANS_AWAY: ("leans the other way within the noise", "lean the other way within the noise"),
    Verdict.OPPOSITE: ("is reversed outside the noise", "are reversed outside the noise"),
    Verdict.LEVEL: (
        "is level in the paper and does not differ beyond the noise here",
        "are level in the paper and do not differ beyond the noise here",
    ),
    Verdict.UNEVEN: (
        "is level in the paper and differs outside the noise here",
        "are level in the paper and differ outside the noise here",
    ),
    Verdict.MOOT: ("does not apply, since nothing is lost", "do not apply, since nothing is lost"),
    Verdict.CEILING: (
        "is inconclusive, since the ceiling moves as far",
        "are inconclusive, since the ceiling moves as far",
    ),
    Verdict.CHANCE: ("is inconclusive, since all rows are at chance", "are inconclusive, since all rows are at chance"),
    Verdict.UNKNOWN: ("has not run yet", "have not run yet"),
}
"""The verdict on one comparison, and on several."""


def write_page(results: Results, design: Design, seeds: int, out: str) -> str:
    """Write `out`/study/index.md, with the plots and results.jsonl beside it. Returns the path of the page."""
    folder = storage.join(out, "study")
    for table in TABLES:
        storage.replace(storage.join(folder, f"{table.name}.svg"), plot(table, results).encode())
    storage.replace(storage.join(folder, "results.jsonl"), format_text(results.contents).encode())
    page = storage.join(folder, "index.md")
    storage.replace(page, render_page(results, design, seeds).encode())
    return page


def render_page(results: Results, design: Design, seeds: int) -> str:
    """The page in Markdown, for results of `seeds` seeds. Its template is `templates/study.md`."""
    import jinja2

    experiments = distinct_experiments(EXPERIMENTS)
    claims = list({claim.comparison: claim for table in TABLES for claim in table.claims}.values())
    verdicts = Counter(_verdict(claim, results) for claim in claims)
    source = files("lotlip_data.pipeline.study").joinpath("templates/study.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string(source).render(
        design=design,
        settings=design.settings,
        from_scratch=design.settings | design.from_scratch,
        gallery=design.gallery,
        captioner_errors=CAPTIONER_ERRORS,
        experiments=len(experiments),
        seeds=seeds,
        done=sum(len(results.seeds(experiment)) for experiment in experiments),
        hours=results.hours,
        claims=len(claims),
        claims_far_apart=sum(any(_far_apart_experiments(claim, results)) for claim in claims),
        min_seeds=MIN_SEEDS,
        level_points=LEVEL_POINTS,
        far_apart_factor=FAR_APART_FACTOR,
        far_apart_points=FAR_APART_POINTS,
        verdicts={verdict: verdicts[verdict] for verdict in Verdict if verdicts[verdict]},
        sections="\n\n".join(_section(table, results) for table in TABLES),
    )


def _section(table: Table, results: Results) -> str:
    parts = [
        f"## {table.title}",
        f"**The paper:** {table.finding}",
        table.note,
        _result_table(table, results),
        f"![{table.title}]({table.name}.svg)",
        _claim_table(table, results),
        _far_apart_note(table, results),
        _summary(table, results),
    ]
    return "\n\n".join(part for part in parts if part)


def _result_table(table: Table, results: Results) -> str:
    """Mean and standard deviation per row and figure, beside the paper's values."""
    columns = {key: name for metric in table.metrics for key, name in COLUMNS[metric].items()}
    columns |= EXTRA_COLUMNS.get(table.name, {})
    printed = [metric for metric in table.metrics if any(row.paper for row in table.rows)]
    head = ["", "seeds", *columns.values(), *(f"*paper: {METRIC_NAMES[metric]}*" for metric in printed)]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in table.rows:
        cells = [row.label, str(len(results.seeds(row.experiment)) or NOT_RUN)]
        cells += [_result_cell(row, column, results) for column in columns]
        lines.append(cells + [_paper_cell(row, metric) for metric in printed])
    return _markdown_table(lines)


def _result_cell(row: TableRow, column: str, results: Results) -> str:
    if row.token_limit and column == "flops.limit":
        return f"{results.padded_flops[row.token_limit]:.1f}"
    values = list(results.values(row.experiment, column).values())
    if not values:
        return NOT_RUN
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _paper_cell(row: TableRow, metric: str) -> str:
    return f"*{row.paper[metric]:.1f}*" if row.paper and metric in row.paper else ""


def _claim_table(table: Table, results: Results) -> str:
    """The comparisons of a table, with the paper's value, the study's and the verdict."""
    lines = [["comparison", "metric", "paper", "here, 95% interval", "verdict"], ["---"] * 5]
    for claim in table.claims:
        contrast = results.contrast(dict(claim.weights), claim.metric)
        paper = _DIRECTIONS[claim.sign] if claim.printed is None else f"{claim.printed:+.1f}"
        here = f"{contrast.mean:+.1f} [{contrast.low:+.1f}, {contrast.high:+.1f}]" if contrast else NOT_RUN
        mark = FAR_APART_MARK if any(_far_apart_experiments(claim, results)) else ""
        lines.append([claim.text, METRIC_NAMES[claim.metric], paper, here, _verdict(claim, results) + mark])
    return _markdown_table(lines)


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _verdict(claim: Claim, results: Results) -> Verdict:
    contrast = results.contrast(dict(claim.weights), claim.metric)
    if contrast is None:
        return Verdict.UNKNOWN
    if results.at_chance(dict(claim.weights), claim.metric):
        return Verdict.CHANCE
    if claim.requires and _verdict(claim.requires, results) not in (Verdict.HOLDS, Verdict.LEANS):
        return Verdict.MOOT
    ceiling_change = results.ceiling_change(dict(claim.weights), claim.metric)
    if contrast.mean * ceiling_change > 0 and abs(contrast.mean) <= abs(ceiling_change):
        return Verdict.CEILING
    return contrast.verdict(claim.sign)


def _far_apart_experiments(claim: Claim, results: Results) -> Iterator[Experiment]:
    """The experiments of a comparison whose seeds are far apart; none if the comparison is inconclusive."""
    if _verdict(claim, results) not in (Verdict.UNKNOWN, Verdict.CHANCE, Verdict.CEILING, Verdict.MOOT):
        yield from (experiment for experiment, _ in claim.weights if results.far_apart(experiment, claim.metric))


def _far_apart_note(table: Table, results: Results) -> str:
    """The values per seed of the rows that are marked."""
    labels = {row.experiment: row.label for row in reversed(table.rows)}
    marked = dict.fromkeys(
        (experiment, claim.metric) for claim in table.claims for experiment in _far_apart_experiments(claim, results)
    )
    values = {key: results.values(*key).values() for key in marked}
    notes = (
        f"{labels[experiment]}, {METRIC_NAMES[metric]}: {', '.join(f'{value:.1f}' for value in by_seed)}"
        for (experiment, metric), by_seed in values.items()
    )
    return f"{FAR_APART_MARK} Seeds far apart. {'; '.join(notes)}." if marked else ""


def _summary(table: Table, results: Results) -> str:
    """The comparisons of a table, grouped by verdict, as a list."""
    verdicts = {claim: _verdict(claim, results) for claim in table.claims}
    lines = []
    for verdict in Verdict:
        claims = [claim for claim in verdicts if verdicts[claim] is verdict]
        if claims:
            lines.append(f"- {len(claims)} {_PHRASES[verdict][len(claims) > 1]}: {'; '.join(_named(claims))}.")
    return "\n".join([f"**Does it hold here?** Of {len(verdicts)} comparisons:", "", *lines])


def _named(claims: Sequence[Claim]) -> list[str]:
    """Each comparison once, with its metrics."""
    metrics: dict[str, list[str]] = {}
    for claim in claims:
        metrics.setdefault(claim.text, []).append(METRIC_NAMES[claim.metric])
    return [f"{text} ({', '.join(names)})" for text, names in metrics.items()]
