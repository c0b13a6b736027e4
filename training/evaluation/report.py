"""Evaluations as tables in the paper's layout, the paper's rows above ours, in Markdown or LaTeX.

Table 4: R@1 on long texts; Table 5: short texts and ImageNet; Tables 10 and 11: the same for each scale of the paper's
data; then all that was measured, and what was read, beside Table 1. Below each, or in it, stand the shares of texts and
of tokens that were cut. A number of a part of a task, or of images some of which were damaged, is marked with *.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation.paper_results import (
    RELEASED,
    TABLE_4,
    TABLE_4_TASKS,
    TABLE_5,
    TABLE_5_TASKS,
    TABLE_10,
    TABLE_11,
    Printed,
)

Form = Literal["markdown", "latex"]
Head = tuple[str, str, str]
TEXTS: Head = ("Short", "Long", "Model")
SCALE: Head = ("Data", "Image tower", "Model")
NONE = "–"
MARKED = "With an asterisk (*): measured on a part of the published set"


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, rows of text, and a line below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(evaluations: Sequence[Mapping[str, Any]], form: Form = "markdown") -> str:
    """The tables of evaluations (what `evaluate` gives); those of one model fill one row."""
    models = _by_model(evaluations)
    found = [
        _long("Table 4: long texts, R@1", TEXTS, (*TABLE_4, RELEASED), models),
        _short("Table 5: short texts and ImageNet", TEXTS, TABLE_5, models),
        _long("Table 10: long texts by the data's scale, R@1", SCALE, TABLE_10, models),
        _short("Table 11: short texts and ImageNet by the data's scale", SCALE, TABLE_11, models),
        _all_figures(models),
        _what_was_read(models),
    ]
    write = _markdown if form == "markdown" else _latex
    return "\n".join(write(table) for table in found if table.rows)


def _by_model(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results and settings of each task by the model's name.

    A model is its weights: it has the name of its first evaluation, and others of that name tell their digest. Raises
    UserError for two results of one model and task that are not the same.
    """
    models: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for one in evaluations:
        settings = one["settings"]
        digest = settings["model"]
        name = str(settings.get("name", digest[:12]))
        name = names.setdefault(digest, name if name not in names.values() else f"{name} ({digest[:8]})")
        held = models.setdefault(name, {})
        for task, found in {**one["retrieval"], **one["classification"]}.items():
            entry = {"found": found, **settings.get("tasks", {}).get(task, {})}
            if held.setdefault(task, entry)["found"] != found:
                raise UserError(
                    f"{name}: there are two results of {_title(held, task)} with other figures; give the one to show"
                )
    return models


def _long(title: str, head: Head, printed: Sequence[Printed], models: dict[str, dict[str, Any]]) -> Table:
    """Table 4's columns."""
    ways = [(task, way, "R@1") for task in TABLE_4_TASKS for way in ("t2i", "i2t")]

    def ours(held: dict[str, Any]) -> list[str]:
        values = [_percent(held, *which) for which in ways]
        if NONE in values:
            return [*values, NONE]
        mean = sum(held[task]["found"][way][metric] for task, way, metric in ways) / len(ways)
        return [*values, f"{100 * mean:.2f}" + "*" * any("*" in value for value in values)]

    columns = ("DCI T2I", "I2T", "IIW T2I", "I2T", "SV-1k T2I", "I2T", "SV-10k T2I", "I2T", "Avg.")
    return _beside(title, (*head, *columns), printed, models, TABLE_4_TASKS, ours)


def _short(title: str, head: Head, printed: Sequence[Printed], models: dict[str, dict[str, Any]]) -> Table:
    """Table 5's columns."""

    def ours(held: dict[str, Any]) -> list[str]:
        ways = [(task, way, metric) for task in TABLE_5_TASKS for way in ("i2t", "t2i") for metric in ("R@1", "R@5")]
        return [_percent(held, "imagenet", "top1"), *(_percent(held, *which) for which in ways)]

    ways = [f"{way} {metric}" for way in ("I2T", "T2I") for metric in ("R@1", "R@5")]
    columns = ("IN Acc.", *(f"{title} {way}" for title in ("COCO", "Flickr") for way in ways))
    return _beside(title, (*head, *columns), printed, models, ("imagenet", *TABLE_5_TASKS), ours)


def _beside(
    title: str,
    columns: tuple[str, ...],
    printed: Sequence[Printed],
    models: dict[str, dict[str, Any]],
    tasks: Sequence[str],
    ours: Callable[[dict[str, Any]], list[str]],
) -> Table:
    """The paper's rows, and ours below; no row where nothing was measured for the table."""
    rows = [(name, values) for name, held in models.items() if set(values := ours(held)) != {NONE}]
    if not rows:
        return Table(title, (), ())
    paper = [(one.short, one.long, one.model, *map(_or_none, one.values)) for one in printed]
    measured = [("ours", "", f"**{name}**", *values) for name, values in rows]
    return Table(title, columns, (*paper, *measured), _what_was_cut({name: models[name] for name, _ in rows}, tasks))


def _what_was_cut(models: dict[str, dict[str, Any]], tasks: Sequence[str]) -> str:
    """Of each model, the shares of each task's texts and of all their tokens."""
    lines = []
    for name, held in models.items():
        cuts = [" / ".join((_title(held, task), *_cut(held[task]["found"]))) for task in tasks if task in held]
        lines.append(f"{name}: {', '.join(cuts)}")
    return f"Cut at the context length (task / texts / tokens): {'; '.join(lines)}"


def _title(held: dict[str, Any], task: str) -> str:
    return str(held[task].get("title", task))


def _cut(found: Mapping[str, Any]) -> tuple[str, str]:
    """The shares of texts and of tokens that were cut; – for the second in results of before it was counted."""
    tokens = found.get("cut_tokens")
    return f"{100 * found['cut']:.1f}%", NONE if tokens is None else f"{100 * tokens:.1f}%"


def _all_figures(models: dict[str, dict[str, Any]]) -> Table:
    metrics = [(way, metric) for way in ("t2i", "i2t") for metric in ("R@1", "R@5", "R@10")]
    rows = []
    for name, held in models.items():
        for task, entry in held.items():
            if "t2i" in entry["found"]:
                values = [_percent(held, task, *which) for which in metrics]
            else:
                values = [_percent(held, task, "top1"), *[NONE] * (len(metrics) - 1)]
            found = entry["found"]
            rows.append((name, _title(held, task), *values, *_cut(found), f"{len(found['damaged']):,}"))
    columns = [f"{way.upper()} {metric}" for way, metric in metrics]
    columns[0] += " / Acc."
    return Table("All figures", ("Model", "Task", *columns, "Texts cut", "Tokens cut", "Damaged"), tuple(rows))


def _what_was_read(models: dict[str, dict[str, Any]]) -> Table:
    rows: dict[tuple[str, ...], None] = {}
    for held in models.values():
        for entry in held.values():
            statistics = entry.get("statistics", {})
            if "sub_captions_per_text" in statistics:
                printed = entry["published"]
                row = printed.get("row") or (None, None)
                rows[
                    (
                        entry["title"],
                        f"{statistics['images']:,} / {printed['images']:,}",
                        f"{statistics['texts']:,} / {printed['texts']:,}",
                        f"{statistics['sub_captions_per_text']:.2f} / {_or_none(row[0])}",
                        f"{statistics['tokens_per_text']:.2f} / {_or_none(row[1])}",
                    )
                ] = None
    columns = ("Task", "Images", "Texts", "Sub-captions a text", "Tokens a text")
    return Table("What was read / Table 1", columns, tuple(rows))


def _or_none(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _percent(held: dict[str, Any], task: str, *path: str) -> str:
    """A share in percent with two decimals; `*` where it is of a part of the task, – where it was not measured."""
    if task not in held:
        return NONE
    value: Any = held[task]["found"]
    for name in path:
        value = value[name]
    partial = held[task].get("partial", False) or held[task]["found"]["damaged"]
    return f"{100 * value:.2f}" + "*" * bool(partial)


def _markdown(table: Table) -> str:
    lines = [f"### {table.title}", "", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in table.rows]
    for note in _notes(table):
        lines += ["", note]
    return "\n".join([*lines, ""])


def _notes(table: Table) -> list[str]:
    """The lines below a table."""
    marked = any(_is_marked(cell) for row in table.rows for cell in row)
    return [*([table.note] if table.note else []), *([MARKED] if marked else [])]


def _is_marked(cell: str) -> bool:
    return cell.endswith("*") and not cell.endswith("**")


def _escape(cell: str) -> str:
    cell = cell.replace("|", r"\|")
    return f"{cell[:-1]}\\*" if _is_marked(cell) else cell


def _latex(table: Table) -> str:
    """With booktabs; a line apart from the paper's rows stand ours."""
    lines = [f"% {table.title}", r"\begin{tabular}{" + "l" * len(table.columns) + "}", r"\toprule"]
    lines.append(" & ".join(map(_tex, table.columns)) + r" \\")
    lines.append(r"\midrule")
    apart = False
    for row in table.rows:
        if row[0] == "ours" and not apart:
            lines.append(r"\midrule")
            apart = True
        lines.append(" & ".join(map(_tex, row)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for note in _notes(table):
        lines += ["", _tex(note)]
    return "\n".join([*lines, ""])


def _tex(cell: str) -> str:
    bold = cell.startswith("**") and cell.endswith("**") and len(cell) > 4
    text = cell[2:-2] if bold else cell
    for one, other in (
        ("\\", "\0"),
        ("{", r"\{"),
        ("}", r"\}"),
        ("\0", r"\textbackslash{}"),
        ("~", r"\textasciitilde{}"),
        ("^", r"\textasciicircum{}"),
        ("$", r"\$"),
        ("_", r"\_"),
        ("%", r"\%"),
        ("#", r"\#"),
        ("&", r"\&"),
        ("–", "--"),
    ):
        text = text.replace(one, other)
    return rf"\textbf{{{text}}}" if bold else text
