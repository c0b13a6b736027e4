"""Pieces of the studies' pages in Markdown."""

from collections.abc import Collection, Sequence
from importlib.resources import files
from statistics import fmean, stdev
from typing import Any

from lotlip_data.pipeline.study.statistics import Difference

NOT_RUN = "–"


def render(template: str, **values: Any) -> str:
    """A page from a template of the package."""
    import jinja2

    source = files("lotlip_data.pipeline.study").joinpath("templates", template).read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string(source).render(**values)


def table(rows: Sequence[Sequence[str]], text_columns: int = 0) -> str:
    """A table whose first row is its head. Columns after the first `text_columns` are aligned to the right."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in rows)
    rule = ["---"] * text_columns + ["---:"] * (len(rows[0]) - text_columns)
    return "\n".join([head, f"| {' | '.join(rule)} |", *lines])


def listed(names: Sequence[str]) -> str:
    """Names as part of a sentence: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def spread(values: Collection[float], digits: int = 1) -> str:
    """Mean ± standard deviation."""
    if not values:
        return NOT_RUN
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{deviation}"


def interval(difference: Difference | None) -> str:
    """Mean and 95% interval of a difference."""
    return f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]" if difference else NOT_RUN
