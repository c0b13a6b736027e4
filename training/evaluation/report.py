"""Tables of evaluations in the paper's layout, as Markdown or LaTeX: the paper's rows first, then the measured ones.

Tables 4 and 10 have R@1 on long texts, Tables 5 and 11 have short texts and ImageNet. Two more tables have all figures,
and the statistics of the sets beside the paper's Table 1. Every table of figures states the shares of texts and tokens
that were cut. A figure is marked with * if it was measured on a part of a set, or if images were damaged.
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
    PaperRow,
)

Format = Literal["markdown", "latex"]

BY_TEXTS = ("Short", "Long", "Model")
BY_SCALE = ("Data", "Image tower", "Model")
LONG_COLUMNS = ("DCI T2I", "I2T", "IIW T2I", "I2T", "SV-1k T2I", "I2T", "SV-10k T2I", "I2T", "Avg.")
SHORT_COLUMNS = (
    "IN Acc.",
    *(f"{title} {direction} R@{k}" for title in ("COCO", "Flickr") for direction in ("I2T", "T2I") for k in (1, 5)),
)
SHORT_TASKS = ("imagenet", *TABLE_5_TASKS)
OURS = "ours"
"""The first cell of each measured row."""
NOT_MEASURED = "–"
PARTIAL_NOTE = "With an asterisk (*): measured on a part of the set"
_LATEX_ESCAPES = (
    ("\\", "\0"),  # first, because the others contain backslashes
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
)


def tables(evaluations: Sequence[Mapping[str, Any]], form: Format = "markdown") -> str:
    """Format evaluations as tables. A table for which nothing was measured is left out.

    Args:
        evaluations: Results of `evaluate_zero_shot`. Several of one model fill one row.
        form: The format of the tables.

    Raises:
        UserError: If two results of one model and task differ.
    """
    models = _group_by_model(evaluations)
    long_rows, short_rows = (*TABLE_4, RELEASED), TABLE_5
    candidates = [
        _long_text_table("Table 4: long texts, R@1", BY_TEXTS, long_rows, models),
        _short_text_table("Table 5: short texts and ImageNet", BY_TEXTS, short_rows, models),
        _long_text_table("Table 10: long texts by the scale of the data, R@1", BY_SCALE, TABLE_10, models),
        _short_text_table("Table 11: short texts and ImageNet by the scale of the data", BY_SCALE, TABLE_11, models),
        _all_figures_table(models),
        _statistics_table(models),
    ]
    write = _to_markdown if form == "markdown" else _to_latex
    return "\n".join(write(table) for table in candidates if table.rows)


@dataclass(frozen=True)
class Table:
    """A table of text cells, with a title and a note below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class TaskResult:
    """The figures of one model on one task."""

    task: str
    figures: Mapping[str, Any]
    settings: Mapping[str, Any]
    """What is recorded of the task: title, whether it is partial, statistics, published numbers. Empty if unknown."""

    @property
    def title(self) -> str:
        """The title of the task, or its name."""
        return str(self.settings.get("title", self.task))

    @property
    def is_partial(self) -> bool:
        """Whether a part of the task was measured."""
        return bool(self.settings.get("partial", False) or self.figures["damaged"])

    def share(self, *path: str) -> float:
        """A share in [0, 1], such as that at `"t2i", "R@1"`."""
        value: Any = self.figures
        for name in path:
            value = value[name]
        return float(value)

    def percent(self, *path: str) -> str:
        """A share in percent with two decimals, with `*` if it was measured on a part of the task."""
        return f"{100 * self.share(*path):.2f}" + "*" * self.is_partial

    def cut_percents(self) -> tuple[str, str]:
        """The shares of texts and of tokens that were cut. Results of early releases have only the first."""
        tokens = self.figures.get("cut_tokens")
        return f"{100 * self.figures['cut']:.1f}%", NOT_MEASURED if tokens is None else f"{100 * tokens:.1f}%"


Results = Mapping[str, TaskResult]
"""The results of one model by task."""
Models = Mapping[str, Results]
"""The results of all models by the model's name."""


def _group_by_model(evaluations: Sequence[Mapping[str, Any]]) -> Models:
    """The results of each model by its name.

    A model is identified by the digest of its weights, and has the name of its first evaluation. If another model has
    that name already, the beginning of the digest is added.

    Raises:
        UserError: If two results of one model and task differ.
    """
    models: dict[str, dict[str, TaskResult]] = {}
    names: dict[str, str] = {}
    for evaluation in evaluations:
        settings = evaluation["settings"]
        digest = settings["model"]
        name = str(settings.get("name", digest[:12]))
        name = names.setdefault(digest, name if name not in names.values() else f"{name} ({digest[:8]})")
        results = models.setdefault(name, {})
        for task, figures in {**evaluation["retrieval"], **evaluation["classification"]}.items():
            result = TaskResult(task, figures, settings.get("tasks", {}).get(task, {}))
            first = results.setdefault(task, result)
            if first.figures != figures:
                raise UserError(f"{name}: two results of {first.title} have different figures; give only one of them")
    return models


def figures_by_model(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of the tables by model and task. `partial` says whether a part of the set was measured.

    Raises:
        UserError: If two results of one model and task differ.
    """
    return {
        name: {task: {**result.figures, "partial": result.is_partial} for task, result in results.items()}
        for name, results in _group_by_model(evaluations).items()
    }


def _long_text_table(title: str, head: tuple[str, ...], paper_rows: Sequence[PaperRow], models: Models) -> Table:
    """A table with the columns of Table 4."""
    return _comparison(title, (*head, *LONG_COLUMNS), paper_rows, models, TABLE_4_TASKS, _long_text_cells)


def _short_text_table(title: str, head: tuple[str, ...], paper_rows: Sequence[PaperRow], models: Models) -> Table:
    """A table with the columns of Table 5."""
    return _comparison(title, (*head, *SHORT_COLUMNS), paper_rows, models, SHORT_TASKS, _short_text_cells)


def _comparison(
    title: str,
    columns: tuple[str, ...],
    paper_rows: Sequence[PaperRow],
    models: Models,
    tasks: Sequence[str],
    to_cells: Callable[[Results], list[str]],
) -> Table:
    """The paper's rows, then a row of each model that has a figure for the table; no row if no model has one."""
    cells = {name: to_cells(results) for name, results in models.items()}
    measured = {name: values for name, values in cells.items() if set(values) != {NOT_MEASURED}}
    if not measured:
        return Table(title, (), ())
    rows = [(row.short, row.long, row.model, *map(_two_decimals, row.values)) for row in paper_rows]
    rows += [(OURS, "", f"**{name}**", *values) for name, values in measured.items()]
    return Table(title, columns, tuple(rows), _cut_note({name: models[name] for name in measured}, tasks))


def _long_text_cells(results: Results) -> list[str]:
    """R@1 of each task in both directions, and their mean if all are measured."""
    columns = [(task, direction, "R@1") for task in TABLE_4_TASKS for direction in ("t2i", "i2t")]
    cells = [_percent(results, *column) for column in columns]
    if NOT_MEASURED in cells:
        return [*cells, NOT_MEASURED]
    mean = sum(results[task].share(*path) for task, *path in columns) / len(columns)
    return [*cells, f"{100 * mean:.2f}" + "*" * any("*" in cell for cell in cells)]


def _short_text_cells(results: Results) -> list[str]:
    """ImageNet's accuracy, then R@1 and R@5 of each task, image to text and text to image."""
    columns = [
        (task, direction, metric) for task in TABLE_5_TASKS for direction in ("i2t", "t2i") for metric in ("R@1", "R@5")
    ]
    return [_percent(results, "imagenet", "top1"), *(_percent(results, *column) for column in columns)]


def _percent(results: Results, task: str, *path: str) -> str:
    return results[task].percent(*path) if task in results else NOT_MEASURED


def _cut_note(models: Models, tasks: Sequence[str]) -> str:
    """For each model, the shares of each task's texts and tokens that were cut."""
    lines = []
    for name, results in models.items():
        cuts = [" / ".join((results[task].title, *results[task].cut_percents())) for task in tasks if task in results]
        lines.append(f"{name}: {', '.join(cuts)}")
    return f"Cut at the context length (task / texts / tokens): {'; '.join(lines)}"


def _all_figures_table(models: Models) -> Table:
    """One row per model and task: recall in both directions or accuracy, the shares cut, and damaged images."""
    metrics = [(direction, metric) for direction in ("t2i", "i2t") for metric in ("R@1", "R@5", "R@10")]
    rows = []
    for name, results in models.items():
        for result in results.values():
            if "t2i" in result.figures:
                cells = [result.percent(*metric) for metric in metrics]
            else:
                cells = [result.percent("top1"), *[NOT_MEASURED] * (len(metrics) - 1)]
            damaged = f"{len(result.figures['damaged']):,}"
            rows.append((name, result.title, *cells, *result.cut_percents(), damaged))
    columns = [f"{direction.upper()} {metric}" for direction, metric in metrics]
    columns[0] += " / Acc."
    return Table("All figures", ("Model", "Task", *columns, "Texts cut", "Tokens cut", "Damaged"), tuple(rows))


def _statistics_table(models: Models) -> Table:
    """The statistics of the retrieval sets that were read, beside the published ones. Equal rows are shown once."""
    rows = [
        _statistics_row(result.settings)
        for results in models.values()
        for result in results.values()
        if "sub_captions_per_text" in result.settings.get("statistics", {})
    ]
    columns = ("Task", "Images", "Texts", "Sub-captions per text", "BERT tokens per text")
    return Table("Evaluation sets: as read / as published (Table 1)", columns, tuple(dict.fromkeys(rows)))


def _statistics_row(settings: Mapping[str, Any]) -> tuple[str, ...]:
    statistics, published = settings["statistics"], settings["published"]
    sub_captions, tokens = published.get("row") or (None, None)
    return (
        settings["title"],
        f"{statistics['images']:,} / {_whole(published['images'])}",
        f"{statistics['texts']:,} / {_whole(published['texts'])}",
        f"{statistics['sub_captions_per_text']:.2f} / {_two_decimals(sub_captions)}",
        f"{statistics['tokens_per_text']:.2f} / {_two_decimals(tokens)}",
    )


def _whole(value: int | None) -> str:
    return NOT_MEASURED if value is None else f"{value:,}"


def _two_decimals(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


def _to_markdown(table: Table) -> str:
    lines = [f"### {table.title}", "", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(_escape_markdown, row)) + " |" for row in table.rows]
    for note in _notes(table):
        lines += ["", note]
    return "\n".join([*lines, ""])


def _to_latex(table: Table) -> str:
    """A tabular of booktabs, with a rule between the paper's rows and the measured ones."""
    lines = [f"% {table.title}", r"\begin{tabular}{" + "l" * len(table.columns) + "}", r"\toprule"]
    lines.append(_latex_row(table.columns))
    lines.append(r"\midrule")
    first_measured = next((index for index, row in enumerate(table.rows) if row[0] == OURS), None)
    for index, row in enumerate(table.rows):
        if index == first_measured:
            lines.append(r"\midrule")
        lines.append(_latex_row(row))
    lines += [r"\bottomrule", r"\end{tabular}"]
    for note in _notes(table):
        lines += ["", _escape_latex(note)]
    return "\n".join([*lines, ""])


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_escape_latex, cells)) + r" \\"


def _notes(table: Table) -> list[str]:
    """The lines below a table: its note, and what * means if a cell is marked."""
    is_marked = any(_is_marked(cell) for row in table.rows for cell in row)
    return [*([table.note] if table.note else []), *([PARTIAL_NOTE] if is_marked else [])]


def _is_marked(cell: str) -> bool:
    return cell.endswith("*") and not cell.endswith("**")


def _escape_markdown(cell: str) -> str:
    cell = cell.replace("|", r"\|")
    return f"{cell[:-1]}\\*" if _is_marked(cell) else cell


def _escape_latex(cell: str) -> str:
    is_bold = cell.startswith("**") and cell.endswith("**") and len(cell) > 4
    text = cell[2:-2] if is_bold else cell
    for character, escaped in _LATEX_ESCAPES:
        text = text.replace(character, escaped)
    return rf"\textbf{{{text}}}" if is_bold else text
