"""Tables of text cells, written as Markdown or LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Format = Literal["markdown", "latex"]

OURS = "ours"
"""The first cell of each measured row."""
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
    ("†", r"\textdagger{}"),
)


@dataclass(frozen=True)
class Table:
    """A table of text cells, with a title and notes below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def write(table: Table, form: Format) -> str:
    """The table in a format."""
    return to_markdown(table) if form == "markdown" else to_latex(table)


def to_markdown(table: Table) -> str:
    """A Markdown table below its title, with its notes."""
    head = "| " + " | ".join(map(_escape_markdown, table.columns)) + " |"
    lines = [f"### {table.title}", "", head, "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(_escape_markdown, row)) + " |" for row in table.rows]
    for note in _notes(table):
        lines += ["", note]
    return "\n".join([*lines, ""])


def to_latex(table: Table) -> str:
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
    """The lines below a table: its notes, and what * means if a cell is marked."""
    is_marked = any(_is_marked(cell) for row in table.rows for cell in row)
    return [*table.notes, *([PARTIAL_NOTE] if is_marked else [])]


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
