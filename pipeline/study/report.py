"""The page of the study: each table and figure beside the paper, with what has run and whether its directions hold."""

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from statistics import fmean, stdev

from lotlip_data.manifests import storage
from lotlip_data.pipeline.study.experiments import ROWS, Design, Experiment, distinct
from lotlip_data.pipeline.study.paper_claims import LEVEL, TABLES, Claim, Line, Table
from lotlip_data.pipeline.study.plots import plot
from lotlip_data.pipeline.study.results import APART_POINTS, APART_TIMES, Results, format_text
from lotlip_data.pipeline.study.significance import LEAST_SEEDS, Verdict
from lotlip_data.synthetic.hard_scenes import EYESIGHT

NAMES = {
    "long": "long texts",
    "short": "short texts",
    "class": "classes",
    "unrelated": "texts of 12–20 sentences",
    "detailed": "those of near twins",
}
COLUMNS = {
    "long": {
        "person.t2i.R@1": "person T2I",
        "person.i2t.R@1": "I2T",
        "sharegpt4v.t2i.R@1": "captioner T2I",
        "sharegpt4v.i2t.R@1": "I2T",
    },
    "unrelated": {"unrelated.t2i.R@1": "12–20 sentences T2I", "unrelated.i2t.R@1": "I2T"},
    "detailed": {"detailed.t2i.R@1": "of near twins T2I", "detailed.i2t.R@1": "I2T"},
    "short": {"short.t2i.R@1": "short T2I", "short.i2t.R@1": "I2T"},
    "class": {"class.top1": "class"},
}
EXTRA = {
    "table-11": {"short.t2i.R@5": "short T2I R@5", "short.i2t.R@5": "I2T R@5"},
    "figure-4": {
        "unrelated.t2i.most": "at most T2I",
        "unrelated.i2t.most": "I2T",
        "detailed.t2i.most": "of near twins at most T2I",
        "detailed.i2t.most": "I2T",
        "unrelated.cut": "texts cut",
        "flops.limit": "MFLOP at the limit",
        "flops.text": "MFLOP a text",
    },
}
NOT_RUN, APART = "–", "†"


def write_page(results: Results, design: Design, seeds: int, out: str) -> str:
    """Write index.md, the plots and results.jsonl into `out`/study. Returns the path of the page."""
    for table in TABLES:
        storage.replace(storage.join(out, "study", f"{table.name}.svg"), plot(table, results).encode())
    storage.replace(storage.join(out, "study", "results.jsonl"), format_text(results.contents).encode())
    page = storage.join(out, "study", "index.md")
    storage.replace(page, render(results, design, seeds).encode())
    return page


def render(results: Results, design: Design, seeds: int) -> str:
    """The page in Markdown, of results of so many seeds; its text is in `templates/study.md`."""
    import jinja2

    rows = distinct(ROWS)
    there = sum(len(results.seeds(row)) for row in rows)
    claims = list({claim.comparison: claim for table in TABLES for claim in table.claims}.values())
    verdicts = Counter(_verdict(claim, results) for claim in claims)
    words = files("lotlip_data.pipeline.study").joinpath("templates/study.md").read_text(encoding="utf-8")
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(words)
    return template.render(
        design=design,
        settings=design.settings,
        fresh=design.settings | design.fresh,
        gallery=design.gallery,
        eyesight=EYESIGHT,
        rows=len(rows),
        seeds=seeds,
        there=there,
        hours=results.hours,
        claims=len(claims),
        apart=sum(any(_apart(claim, results)) for claim in claims),
        least=LEAST_SEEDS,
        level=LEVEL,
        apart_times=APART_TIMES,
        apart_points=APART_POINTS,
        verdicts={verdict: verdicts[verdict] for verdict in Verdict if verdicts[verdict]},
        sections="\n\n".join(_section(table, results) for table in TABLES),
    )


def _section(table: Table, results: Results) -> str:
    parts = [
        f"## {table.title}",
        f"The paper: {table.says}",
        *([table.note] if table.note else []),
        _rows(table, results),
        f"![{table.title}]({table.name}.svg)",
    ]
    apart = _far_apart(table, results)
    return "\n\n".join([*parts, _claims(table, results), *([apart] if apart else []), _sentence(table, results)])


def _rows(table: Table, results: Results) -> str:
    columns = {key: name for metric in table.metrics for key, name in COLUMNS[metric].items()}
    columns |= EXTRA.get(table.name, {})
    printed = any(line.paper for line in table.lines)
    head = ["", "seeds", *columns.values(), *(f"*paper: {NAMES[metric]}*" for metric in table.metrics if printed)]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for line in table.lines:
        cells = [line.label, str(len(results.seeds(line.row)) or NOT_RUN)]
        cells += [_cell(line, column, results) for column in columns]
        lines.append(cells + [_printed(line, metric) for metric in table.metrics if printed])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(line: Line, column: str, results: Results) -> str:
    if line.limit and column == "flops.limit":
        return f"{results.padded_flops[line.limit]:.1f}"
    values = list(results.values(line.row, column).values())
    if not values:
        return NOT_RUN
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _printed(line: Line, metric: str) -> str:
    return f"*{line.paper[metric]:.1f}*" if line.paper and metric in line.paper else ""


def _claims(table: Table, results: Results) -> str:
    lines = [["comparison", "on", "paper", "here, 95% interval", "verdict"], ["---"] * 5]
    for claim in table.claims:
        found = results.contrast(dict(claim.weights), claim.metric)
        printed = _SIDES[claim.sign] if claim.printed is None else f"{claim.printed:+.1f}"
        here = NOT_RUN if found is None else f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"
        verdict = _verdict(claim, results) + (APART if any(_apart(claim, results)) else "")
        lines.append([claim.text, NAMES[claim.metric], printed, here, verdict])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


_SIDES = {1: "higher", -1: "lower", 0: "level"}


def _verdict(claim: Claim, results: Results) -> Verdict:
    found = results.contrast(dict(claim.weights), claim.metric)
    if found is None:
        return Verdict.UNKNOWN
    if results.at_chance(dict(claim.weights), claim.metric):
        return Verdict.CHANCE
    if claim.given and _verdict(claim.given, results) not in (Verdict.HOLDS, Verdict.LEANS):
        return Verdict.MOOT
    moves = results.ceiling_moves(dict(claim.weights), claim.metric)
    if found.mean * moves > 0 and abs(found.mean) <= abs(moves):
        return Verdict.CEILING
    return found.verdict(claim.sign)


def _apart(claim: Claim, results: Results) -> Iterator[Experiment]:
    """The rows of the comparison whose seeds are far apart; of one that says nothing, none."""
    if _verdict(claim, results) not in (Verdict.UNKNOWN, Verdict.CHANCE, Verdict.CEILING, Verdict.MOOT):
        yield from (row for row, _ in claim.weights if results.far_apart(row, claim.metric))


def _far_apart(table: Table, results: Results) -> str:
    """The seeds of the rows that are marked, one by one."""
    labels = {line.row: line.label for line in reversed(table.lines)}
    marked = dict.fromkeys((row, claim.metric) for claim in table.claims for row in _apart(claim, results))
    each = (
        f"{labels[row]}, {NAMES[metric]}: {', '.join(f'{one:.1f}' for one in results.values(row, metric).values())}"
        for row, metric in marked
    )
    return f"{APART} Seeds far apart. {'; '.join(each)}." if marked else ""


def _sentence(table: Table, results: Results) -> str:
    """Which of the paper's findings hold here, and which do not, in one sentence."""
    verdicts = {claim: _verdict(claim, results) for claim in table.claims}
    said = []
    for verdict in Verdict:
        which = [claim for claim, found in verdicts.items() if found is verdict]
        if which:
            said.append(f"{len(which)} {_PHRASES[verdict][len(which) > 1]} ({'; '.join(_named(which))})")
    return f"**Does it hold here?** Of {len(verdicts)} comparisons {', '.join(said)}."


_PHRASES = {
    Verdict.HOLDS: ("holds outside the noise", "hold outside the noise"),
    Verdict.LEANS: ("leans the paper's way within the noise", "lean the paper's way within the noise"),
    Verdict.LEANS_AWAY: ("leans the other way within the noise", "lean the other way within the noise"),
    Verdict.OPPOSITE: ("is reversed outside the noise", "are reversed outside the noise"),
    Verdict.LEVEL: ("is level there and not told apart here", "are level there and not told apart here"),
    Verdict.UNEVEN: ("is level there and differs here outside the noise", "are level there and differ here outside it"),
    Verdict.MOOT: ("does not arise, since nothing is lost", "do not arise, since nothing is lost"),
    Verdict.CEILING: (
        "cannot be told, since what can be found at most moves as far",
        "cannot be told, since what can be found at most moves as far",
    ),
    Verdict.CHANCE: ("cannot be told, since all are at chance", "cannot be told, since all are at chance"),
    Verdict.UNKNOWN: ("has not run yet", "have not run yet"),
}
"""Of one comparison, and of several."""


def _named(claims: Sequence[Claim]) -> list[str]:
    """Each comparison once, with what it is about."""
    about: dict[str, list[str]] = {}
    for claim in claims:
        about.setdefault(claim.text, []).append(NAMES[claim.metric])
    return [f"{text}: {', '.join(metrics)}" for text, metrics in about.items()]
