"""Row filters: expressions over a list's columns, checked when a manifest is read and evaluated on Arrow columns.

    similarity >= 0.3 and WIDTH >= 256 and not matches(TEXT, "(?i)stock photo")

| syntax | meaning |
|---|---|
| `name`, `col("any name")` | a column |
| numbers, "text", True, False, None | constants |
| `< <= > >= == !=`, `a < b < c`, `in`, `not in` (a list of constants), `is None`, `is not None` | comparisons |
| `and`, `or`, `not`, `+ - * /` | as in Python |
| `len(x)`, `lower(x)`, `matches(x, "pattern")` | number of characters, lowercase text, whether an RE2 pattern matches |

Nothing is executed: the expression is parsed, and only this syntax is accepted. Text that is compared with a number is
read as a number, because columns of CSV, TSV and some JSON lines are text. In the same way, text is read as True or
False where one of these is needed. A missing value, or text that is neither, makes the result unknown. A row with an
unknown result is left out, and counted by that reason.
"""

import ast
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

MAX_LENGTH = 2000
"""Largest number of characters of an expression."""
MAX_DEPTH = 50
"""Deepest nesting of an expression."""
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
"""Name → number of arguments."""
_CONSTANTS = (bool, int, float, str)


class FilterError(ValueError):
    """An invalid expression, or one that does not fit the columns; the message shows the place and the fix."""


@dataclass(frozen=True)
class Rule:
    """One of the conditions that are joined by `and`."""

    text: str
    node: ast.expr


@dataclass(frozen=True)
class RowFilter:
    """A checked expression. Raises FilterError for an invalid one."""

    text: str

    def __post_init__(self) -> None:
        for rule in self.rules:
            _check(rule.node, self.text)

    @functools.cached_property
    def rules(self) -> list[Rule]:
        """The conditions that must all be true, in order."""
        tree = _parse(self.text)
        joined = isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And)
        return [Rule(ast.unparse(node), node) for node in (tree.values if joined else [tree])]  # type: ignore[attr-defined]

    @functools.cached_property
    def columns(self) -> list[str]:
        """The columns that the expression names, each once."""
        names = (_column(node) for rule in self.rules for node in ast.walk(rule.node))
        return list(dict.fromkeys(name for name in names if name is not None))

    def evaluate(self, columns: "Mapping[str, pa.Array]") -> "list[tuple[str, pa.Array]]":
        """Evaluate every rule.

        Args:
            columns: Column → its values; all of the same length.

        Returns:
            For each rule its text and a bool array with one value per row: null if the result is unknown.

        Raises:
            FilterError: If the type of a column does not allow the operation.
        """
        import pyarrow as pa

        length = len(next(iter(columns.values()))) if columns else 0
        results = []
        for rule in self.rules:
            try:
                value = _truth(_evaluate(rule.node, columns))
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                types = ", ".join(f"{name} is {columns[name].type}" for name in self.columns)
                raise FilterError(f"`{rule.text}` does not fit the columns ({types}): {_first_line(error)}") from None
            if value.type != pa.bool_():
                raise FilterError(f"`{rule.text}` gives {value.type}, not true or false: compare it with something")
            results.append((rule.text, value if isinstance(value, pa.Array) else pa.repeat(value, length)))
        return results


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise FilterError(f"longer than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(" ".join(text.split("\n")).strip(), mode="eval").body
    except (MemoryError, RecursionError):
        raise FilterError(f"nested more than {MAX_DEPTH} deep") from None
    except (SyntaxError, ValueError) as error:
        place = f" at column {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise FilterError(f"{_short(repr(text.strip()))} is not an expression{place}: {_first_line(error)}") from None
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise FilterError(f"nested more than {MAX_DEPTH} deep")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            _check_constant(node.value)
    return tree


def _check_constant(value: Any) -> None:
    """Raises FilterError for a constant that Arrow cannot hold."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise FilterError(f"a number of {len(str(abs(value)))} digits is too large; the limit is 2^63")
    if isinstance(value, float) and not math.isfinite(value):
        raise FilterError("a number is too large for 64 bits")
    if isinstance(value, str) and not value.isascii() and value != value.encode("utf-8", "replace").decode():
        raise FilterError(f"{value!r} has half of a surrogate pair, which is no character")


def _check(node: ast.expr, text: str) -> None:
    """Raises FilterError unless the expression uses only the syntax in the module's table."""

    def refuse(what: ast.AST, fix: str) -> FilterError:
        return FilterError(f"`{_short(ast.unparse(what))}` is not possible in a filter: {fix}")

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
                raise refuse(node, "see `filter` in the documentation of the manifest for the syntax")

    check(node)
    if not any(_column(part) is not None for part in ast.walk(node)):
        raise refuse(node, "it names no column")


def _check_comparison(op: ast.cmpop, other: ast.expr, check: Callable, refuse: Callable) -> None:
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(other, ast.List | ast.Tuple) or not other.elts:
            raise refuse(other, '`in` needs a list of constants, such as ["a", "b"]')
        kinds = {type(_listed(part)) for part in other.elts}
        if not (kinds <= {str} or kinds <= {int, float}):
            raise refuse(other, "`in` needs a list of texts or a list of numbers")
    elif isinstance(op, ast.Is | ast.IsNot):
        if not (isinstance(other, ast.Constant) and other.value is None):
            raise refuse(other, "`is` needs None")
    else:
        if isinstance(other, ast.Constant) and other.value is None:
            raise refuse(other, "write `is None` or `is not None`")
        check(other)


def _listed(part: ast.expr) -> Any:
    """The constant that stands in the list of `in`, possibly with a sign. None for anything else."""
    match part:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    return None


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
        raise FilterError(f"{pattern!r} is not an RE2 pattern: {_first_line(error)}") from None


def _column(node: ast.AST) -> str | None:
    """The column that this node names, if any. The name of a function is not a column."""
    if isinstance(node, ast.Name):
        return None if node.id in _FUNCTIONS else node.id
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "col" and node.args:
        return str(node.args[0].value) if isinstance(node.args[0], ast.Constant) else None
    return None


def _evaluate(node: ast.AST, columns: "Mapping[str, pa.Array]") -> Any:
    """An Arrow array with one value per row, or a scalar."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if (name := _column(node)) is not None:
        return columns[name]
    match node:
        case ast.Constant(value=value):
            return pa.scalar(value)
        case ast.BoolOp(op=op, values=parts):
            join = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
            return functools.reduce(join, (_truth(_evaluate(part, columns)) for part in parts))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return pc.invert(_truth(_evaluate(operand, columns)))
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

    result, value = None, _evaluate(left, columns)
    for op, other in zip(ops, others, strict=True):
        if isinstance(op, ast.Is | ast.IsNot):
            holds = pc.is_null(value) if isinstance(op, ast.Is) else pc.is_valid(value)
        elif isinstance(op, ast.In | ast.NotIn):
            among = _is_among(value, [_listed(part) for part in other.elts])  # type: ignore[attr-defined]
            holds = among if isinstance(op, ast.In) else pc.invert(among)
        else:
            right = _evaluate(other, columns)
            holds = pc.call_function(_COMPARISONS[type(op)], list(_of_one_type(value, right)))
            value = right
        result = holds if result is None else pc.and_kleene(result, holds)
    return result


def _is_among(value: Any, constants: list[Any]) -> Any:
    """Whether each value is one of the constants; null for a missing value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_integer(value.type) and all(isinstance(constant, int) for constant in constants):
        kind = pa.uint64() if pa.types.is_uint64(value.type) else pa.int64()
        value, constants = pc.cast(value, kind), [each for each in constants if each >= 0 or kind == pa.int64()]
    elif isinstance(constants[0], str):
        value, kind = _text(value), pa.string()
    else:
        value, kind = _number(value), pa.float64()
    known = pa.array(constants, kind)
    return pc.if_else(pc.is_null(value), pa.scalar(None, pa.bool_()), pc.is_in(value, value_set=known))


def _of_one_type(left: Any, right: Any) -> tuple[Any, Any]:
    """Both sides in types that can be compared: text is read as what the other side is, and numbers lose no digits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = (left.type, right.type)
    if any(map(pa.types.is_boolean, kinds)):
        return _truth(left), _truth(right)
    if not any(map(_is_number_type, kinds)):
        return left, right
    if all(map(pa.types.is_integer, kinds)):
        if any(map(pa.types.is_uint64, kinds)):  # with a signed number, the common type of Arrow cannot hold it
            return pc.cast(left, pa.decimal128(20)), pc.cast(right, pa.decimal128(20))
        return left, right
    if all(map(_is_number_type, kinds)) and not any(map(pa.types.is_floating, kinds)):
        return left, right
    has_other_type = not all(_is_number_type(kind) or _is_text_type(kind) for kind in kinds)
    return (left, right) if has_other_type else (_number(left), _number(right))


def _is_number_type(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text_type(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _truth(value: Any) -> Any:
    """The values as True and False; null for text that is neither. Values of other types are returned as they are.

    Raises TypeError for texts of which none is True or False: this is not the column that was meant.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(value.type):
        return pc.cast(value, pa.bool_())
    if not _is_text_type(value.type):
        return value
    word = pc.utf8_lower(pc.utf8_trim_whitespace(value))
    is_true, is_false = pc.equal(word, "true"), pc.equal(word, "false")
    truth = pc.if_else(pc.or_(is_true, is_false), is_true, pa.scalar(None, pa.bool_()))
    if isinstance(value, pa.Array) and truth.null_count == len(value) > value.null_count:
        raise TypeError("it gives texts, none of which is True or False: compare it with something")
    return truth


def _number(value: Any) -> Any:
    """The values as float64; null for text that is not a number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if _is_text_type(value.type):
        is_number = pc.match_substring_regex(value, _NUMBER)
        value = pc.utf8_trim_whitespace(pc.if_else(is_number, value, pa.scalar(None, value.type)))
        value = pc.utf8_ltrim(value, "+")
    return pc.cast(value, pa.float64(), safe=False)


def _text(value: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return value if pa.types.is_string(value.type) else pc.cast(value, pa.string())


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:120]}…"


def _first_line(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return message.splitlines()[0] if message else type(error).__name__
