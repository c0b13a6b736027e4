"""A row filter: an expression over a list's columns, checked when a manifest is read and evaluated column by column.

    similarity >= 0.3 and WIDTH >= 256 and not matches(TEXT, "(?i)stock photo")

| there is | means |
|---|---|
| `name`, `col("any name")` | a column |
| numbers, "text", True, False, None | constants |
| `< <= > >= == !=`, `a < b < c`, `in`, `not in` (a list of constants), `is None`, `is not None` | comparisons |
| `and`, `or`, `not`, `+ - * /` | as in Python |
| `len(x)`, `lower(x)`, `matches(x, "pattern")` | characters, small letters, whether an RE2 pattern is found in it |

Nothing is executed: the expression is parsed, and only what stands here is accepted. Text that is compared with a
number is read as one (columns of CSV, TSV and some JSON lines are text). A missing value, or text that is no number,
makes a comparison unknown, and a row of which it is unknown whether it fits is left out, with that as the reason.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

MAX_LENGTH = 2000
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?\s*$"
_COMPARISONS = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
_ARITHMETIC = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"}
_FUNCTIONS = {"len": 1, "lower": 1, "matches": 2, "col": 1}
"""Name to number of arguments."""
_CONSTANTS = (bool, int, float, str)


class FilterError(ValueError):
    """An expression that is none, or does not fit the columns; the message shows the place and the fix."""


@dataclass(frozen=True)
class Rule:
    """One of the conditions that `and` joins."""

    text: str
    node: ast.expr


@dataclass(frozen=True)
class RowFilter:
    """A checked expression. Raises FilterError for a text that is none."""

    text: str

    def __post_init__(self) -> None:
        for rule in self.rules:
            _check(rule.node, self.text)

    @cached_property
    def rules(self) -> list[Rule]:
        """The conditions that must all hold, in order."""
        tree = _parse(self.text)
        joined = isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And)
        return [Rule(ast.unparse(node), node) for node in (tree.values if joined else [tree])]  # type: ignore[attr-defined]

    @cached_property
    def columns(self) -> list[str]:
        """The columns that the expression names, each once."""
        found: dict[str, None] = {}
        for rule in self.rules:
            for node in ast.walk(rule.node):
                if (name := _column(node)) is not None:
                    found[name] = None
        return list(found)

    def judge(self, columns: "Mapping[str, pa.Array]") -> "list[tuple[str, pa.Array]]":
        """For each rule its text and, for each row, whether it holds: a bool array, null where it is unknown.

        Raises FilterError where a column's type does not allow it.
        """
        import pyarrow as pa

        length = len(next(iter(columns.values()))) if columns else 0
        answers = []
        for rule in self.rules:
            try:
                value = _evaluate(rule.node, columns)
            except (pa.ArrowException, TypeError) as error:
                types = ", ".join(f"{name} is {columns[name].type}" for name in self.columns)
                raise FilterError(f"`{rule.text}` does not fit the columns ({types}): {_first_line(error)}") from None
            if value.type != pa.bool_():
                raise FilterError(f"`{rule.text}` gives {value.type}, not true or false: compare it with something")
            answers.append((rule.text, value if isinstance(value, pa.Array) else pa.repeat(value, length)))
        return answers


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise FilterError(f"longer than {MAX_LENGTH} characters")
    try:
        return ast.parse(" ".join(text.split("\n")).strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        place = f" at column {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise FilterError(f"{text.strip()!r} is no expression{place}: {_first_line(error)}") from None


def _check(node: ast.expr, text: str) -> None:
    """Raises FilterError unless the expression is made of what the module's table names."""

    def refuse(what: ast.AST, fix: str) -> FilterError:
        return FilterError(f"`{ast.unparse(what)}` is not possible in a filter: {fix}")

    def check(node: ast.expr) -> None:
        match node:
            case ast.Name(id=name):
                if name in _FUNCTIONS:
                    raise refuse(node, f'it is a function; a column of that name is col("{name}")')
            case ast.Constant(value=value) if value is None or isinstance(value, _CONSTANTS):
                pass
            case ast.BoolOp(values=parts):
                for part in parts:
                    check(part)
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
                check(operand)
            case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), left=left, right=right):
                check(left)
                check(right)
            case ast.Compare(left=left, ops=ops, comparators=others):
                check(left)
                for op, other in zip(ops, others, strict=True):
                    _check_comparison(op, other, check, refuse)
            case ast.Call():
                _check_call(node, check, refuse)
            case _:
                raise refuse(node, "see the README for what there is")

    check(node)
    if not any(_column(part) is not None for part in ast.walk(node)):
        raise refuse(node, "it names no column")


def _check_comparison(op: ast.cmpop, other: ast.expr, check: Callable, refuse: Callable) -> None:
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(other, ast.List | ast.Tuple) or not other.elts:
            raise refuse(other, 'after `in` comes a list of constants, such as ["a", "b"]')
        kinds = {type(part.value) if isinstance(part, ast.Constant) else None for part in other.elts}
        if not (kinds <= {str} or kinds <= {int, float}):
            raise refuse(other, "after `in` comes a list of texts or a list of numbers")
    elif isinstance(op, ast.Is | ast.IsNot):
        if not (isinstance(other, ast.Constant) and other.value is None):
            raise refuse(other, "after `is` comes None")
    else:
        if isinstance(other, ast.Constant) and other.value is None:
            raise refuse(other, "write `is None` or `is not None`")
        check(other)


def _check_call(node: ast.Call, check: Callable, refuse: Callable) -> None:
    name = node.func.id if isinstance(node.func, ast.Name) else None
    if name not in _FUNCTIONS or node.keywords:
        raise refuse(node, f"the functions are {', '.join(_FUNCTIONS)}")
    if len(node.args) != _FUNCTIONS[name]:
        raise refuse(node, f"{name} takes {_FUNCTIONS[name]} argument{'s' * (_FUNCTIONS[name] > 1)}")
    if name in ("col", "matches"):
        last = node.args[-1]
        if not (isinstance(last, ast.Constant) and isinstance(last.value, str)):
            raise refuse(node, f"the {'name' if name == 'col' else 'pattern'} must be a text in quotes")
        if name == "matches":
            _check_pattern(last.value)
            check(node.args[0])
    else:
        check(node.args[0])


def _check_pattern(pattern: str) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except pa.ArrowInvalid as error:
        raise FilterError(f"{pattern!r} is no RE2 pattern: {_first_line(error)}") from None


def _column(node: ast.AST) -> str | None:
    """The column that this node names, if it is one. A function's name is walked over with its call."""
    if isinstance(node, ast.Name):
        return None if node.id in _FUNCTIONS else node.id
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "col" and node.args:
        return str(node.args[0].value) if isinstance(node.args[0], ast.Constant) else None
    return None


def _evaluate(node: ast.AST, columns: "Mapping[str, pa.Array]") -> Any:
    """An Arrow array with a value a row, or a scalar."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if (name := _column(node)) is not None:
        return columns[name]
    match node:
        case ast.Constant(value=value):
            return pa.scalar(value)
        case ast.BoolOp(op=op, values=parts):
            join = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
            answer = _evaluate(parts[0], columns)
            for part in parts[1:]:
                answer = join(answer, _evaluate(part, columns))
            return answer
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return pc.invert(_evaluate(operand, columns))
        case ast.UnaryOp(operand=operand):
            return pc.negate(_number(_evaluate(operand, columns)))
        case ast.BinOp(op=op, left=left, right=right):
            sides = (_number(_evaluate(side, columns)) for side in (left, right))
            return pc.call_function(_ARITHMETIC[type(op)], list(sides))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _compare(left, ops, others, columns)
        case ast.Call(func=ast.Name(id=function), args=args):
            value = _text(_evaluate(args[0], columns))
            if function == "len":
                return pc.utf8_length(value)
            if function == "lower":
                return pc.utf8_lower(value)
            return pc.match_substring_regex(value, args[1].value)  # type: ignore[attr-defined]
    raise AssertionError(f"{ast.dump(node)} was accepted and cannot be evaluated")


def _compare(left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr], columns: "Mapping[str, pa.Array]") -> Any:
    import pyarrow.compute as pc

    answer, value = None, _evaluate(left, columns)
    for op, other in zip(ops, others, strict=True):
        if isinstance(op, ast.Is | ast.IsNot):
            one = pc.is_null(value) if isinstance(op, ast.Is) else pc.is_valid(value)
        elif isinstance(op, ast.In | ast.NotIn):
            one = _among(value, [part.value for part in other.elts])  # type: ignore[attr-defined]
            one = one if isinstance(op, ast.In) else pc.invert(one)
        else:
            right = _evaluate(other, columns)
            one = pc.call_function(_COMPARISONS[type(op)], list(_alike(value, right)))
            value = right
        answer = one if answer is None else pc.and_kleene(answer, one)
    return answer


def _among(value: Any, constants: list[Any]) -> Any:
    """Whether each value is one of the constants; null where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = isinstance(constants[0], str)
    value = _text(value) if texts else _number(value)
    known = pa.array(constants, pa.string() if texts else pa.float64())
    return pc.if_else(pc.is_null(value), pa.scalar(None, pa.bool_()), pc.is_in(value, value_set=known))


def _alike(left: Any, right: Any) -> tuple[Any, Any]:
    """Both sides, the textual one read as numbers where the other is a number."""
    import pyarrow as pa

    texts = [pa.types.is_string(side.type) or pa.types.is_large_string(side.type) for side in (left, right)]
    if texts[0] == texts[1]:
        return left, right
    numbers = [pa.types.is_integer(side.type) or pa.types.is_floating(side.type) for side in (left, right)]
    return (_number(left), _number(right)) if any(numbers) else (left, right)


def _number(value: Any) -> Any:
    """As float64; null where text is no number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(value.type) or pa.types.is_large_string(value.type):
        holds = pc.match_substring_regex(value, _NUMBER)
        value = pc.utf8_trim_whitespace(pc.if_else(holds, value, pa.scalar(None, value.type)))
        value = pc.utf8_ltrim(value, "+")
    return pc.cast(value, pa.float64(), safe=False)


def _text(value: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return value if pa.types.is_string(value.type) else pc.cast(value, pa.string())


def _first_line(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return message.splitlines()[0] if message else type(error).__name__
