"""A filter is parsed and never executed. It has the same result on typed columns and on text."""

import decimal
from typing import Any

import pyarrow as pa
import pytest

from lotlip_data.manifests.sources.row_filter import FilterError, RowFilter

COLUMNS: dict[str, list[Any]] = {
    "n": [1, 2, None, 4],
    "x": [0.1, 0.2, 0.3, None],
    "s": ["a", "Bee", "stock photo", None],
    "odd name": [1, 1, 0, 0],
}


def evaluate(text: str, as_text: bool = False) -> list[bool | None]:
    """The result of the whole filter for each row."""
    row_filter = RowFilter(text)
    columns = {
        name: pa.array([None if value is None else str(value) for value in COLUMNS[name]])
        if as_text
        else pa.array(COLUMNS[name])
        for name in row_filter.columns
    }
    results = [holds.to_pylist() for _, holds in row_filter.evaluate(columns)]
    return [None if None in row else all(row) for row in zip(*results, strict=True)]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    "text, expected",
    [
        ("n >= 2", [False, True, None, True]),
        ("1 < n < 4", [False, True, None, False]),
        ("n in [1, 4]", [True, False, None, True]),
        ("n not in (1, 4)", [False, True, None, False]),
        ("n in [-1, 2]", [False, True, None, False]),
        ("n is None or x is None", [False, False, True, True]),
        ("n is not None", [True, True, False, True]),
        ("n * 2 + 1 == 5", [False, True, None, False]),
        ("n / 0 > 1", [True, True, None, True]),
        ("-x < -0.15", [False, True, True, None]),
        ("not (n > 1)", [True, False, None, False]),
        ("n > 1 or x < 0.15", [True, True, None, True]),
        ("len(s) == 3", [False, True, False, None]),
        ('lower(s) == "bee"', [False, True, False, None]),
        ('matches(s, "^stock")', [False, False, True, None]),
        ('s in ["a", "b"]', [True, False, False, None]),
        ('col("odd name") == 1 and n < 2', [True, False, None, False]),
        ("n >= 1\n and x >= 0", [True, True, None, None]),
    ],
)
def test_expressions_mean_what_python_means_with_unknown_for_missing_values(
    text: str, expected: list[bool | None], as_text: bool
) -> None:
    assert evaluate(text, as_text) == expected


def test_text_that_is_not_a_number_makes_a_comparison_unknown() -> None:
    values = pa.array(["1", " 2.5e0 ", "+3", "x", "", "nan", "0x10", "1_000"])
    ((_, holds),) = RowFilter("v >= 1").evaluate({"v": values})
    assert holds.to_pylist() == [True, True, True, None, None, None, None, None]


WORDS = ["True", " false ", "x", None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v", [True, False, None, None]),
        ("not v", [False, True, None, None]),
        ("v == True", [True, False, None, None]),
        ("v != True", [False, True, None, None]),
        ("v == False or v is None", [False, True, None, True]),
    ],
)
def test_text_is_read_as_true_or_false_where_one_of_them_is_needed(text: str, expected: list[bool | None]) -> None:
    for kind in (pa.string(), pa.large_string()):
        ((_, holds),) = RowFilter(text).evaluate({"v": pa.array(WORDS, kind)})
        assert holds.to_pylist() == expected
    ((_, holds),) = RowFilter(text).evaluate({"v": pa.nulls(2)})
    assert set(holds.to_pylist()) <= {None, True}


def test_a_column_of_other_texts_is_not_read_as_true_or_false() -> None:
    for text in ("v", "not v", "v == True", "v or v is None"):
        with pytest.raises(FilterError, match="none of which is True or False: compare it with something"):
            RowFilter(text).evaluate({"v": pa.array(["a", None])})


def test_large_whole_numbers_are_compared_digit_by_digit() -> None:
    large = 2**53
    for kind, top in ((pa.int64(), 2**63 - 1), (pa.uint64(), 2**64 - 1)):
        values = pa.array([large, large + 1, top, None], kind)
        for text in (
            f"v == {large + 1}",
            f"v in [{large + 1}]",
            f"v in [-1, {large + 1}]",
            f"{large} < v < {large + 2}",
        ):
            ((_, holds),) = RowFilter(text).evaluate({"v": values})
            assert holds.to_pylist() == [False, True, False, None]
    ((_, holds),) = RowFilter(f"v >= {large + 1}").evaluate({"v": pa.array([0.5, 1e300])})
    assert holds.to_pylist() == [False, True]


@pytest.mark.parametrize(
    "text, message",
    [
        ("__import__('os').system('true')", r"`__import__\('os'\).system\('true'\)` is not possible .* functions are"),
        ("n.real > 1", "`n.real` is not possible"),
        ("[x for x in n]", "is not possible"),
        ("(lambda: 1)() > n", "the functions are"),
        ("n ** 99999999 > 1", "is not possible"),
        ("f'{n}' == s", "is not possible"),
        ("n => 3", "is not an expression at column 3"),
        ("", "is not an expression"),
        ("1 < 2", "it names no column"),
        ("n == None", "write `is None`"),
        ("n is 3", "`is` needs None"),
        ("n in s", "`in` needs a list of constants"),
        ("n in [1, 'a']", "a list of texts or a list of numbers"),
        ("len(s, n) > 1", "len takes 1 argument"),
        ("matches(s, '(')", r"'\(' is not an RE2 pattern"),
        ("len > 3", r'it is a function; a column of that name is col\("len"\)'),
        ("(" * 3000, "longer than 2000 characters"),
        ("(" * 900 + "n" + ")" * 900, "is not an expression"),
    ],
)
def test_an_invalid_filter_is_an_error_with_its_place_and_the_fix(text: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        RowFilter(text)


def test_columns_of_the_wrong_type_are_named_with_their_types() -> None:
    with pytest.raises(FilterError, match=r"`s > 3` does not fit the columns \(s is list<item: int64>\)"):
        RowFilter("s > 3").evaluate({"s": pa.array([[1]])})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(" * 250 + "a" + ")" * 250 + " > 1", "is not an expression|nested"),
        ("not " * 480 + "(a > 1)", "nested more than 50 deep"),
        ("-" * 1900 + "a > 1", "nested more than 50 deep"),
        ("a" + "+a" * 900 + " > 1", "nested more than 50 deep"),
        ("a if b else " * 100 + "c", "nested more than 50 deep"),
        ("a > " + "9" * 1900, "a number of 1900 digits is too large"),
        ("a in [" + "9" * 30 + "]", "a number of 30 digits is too large"),
        ("a > 1e999", "a number is too large"),
        ('a == "\\ud800"', "half of a surrogate pair"),
        ('matches(a, "\\udfff")', "half of a surrogate pair"),
        ('col("\\ud800") == 1', "half of a surrogate pair"),
    ],
)
def test_nesting_numbers_and_texts_that_cannot_be_evaluated_are_refused(text: str, message: str) -> None:
    with pytest.raises(FilterError, match=message) as error:
        RowFilter(text)
    assert len(str(error.value)) < 300


def test_long_chains_of_rules_are_no_nesting() -> None:
    (*_, (text, holds)) = RowFilter(" and ".join(["a > 1"] * 150)).evaluate({"a": pa.array([1, 2])})
    assert (text, holds.to_pylist()) == ("a > 1", [False, True])


@pytest.mark.parametrize(
    "values",
    [
        *(pa.array([decimal.Decimal("1.5"), None]), pa.array([2**63, None], pa.uint64()), pa.array([[1], None])),
        *(pa.array([b"\xff", None]), pa.nulls(2), pa.array([{"x": 1}, None]), pa.array([0, None], pa.date32())),
        *(pa.array([0, None], pa.timestamp("s")), pa.array([0, None], pa.duration("s")), pa.array([True, None])),
    ],
    ids=lambda values: str(values.type),
)
def test_columns_of_every_type_are_evaluated_or_refused(values: pa.Array) -> None:
    for text in (
        "a >= 1",
        'a == "x"',
        "len(a) > 1",
        "a in [1, 2]",
        "a is not None",
        "not a",
        "-a > 1",
        "lower(a) == 'x'",
    ):
        try:
            ((_, holds),) = RowFilter(text).evaluate({"a": values})
        except FilterError as error:
            assert "does not fit the columns" in str(error) or "not true or false" in str(error)
        else:
            assert len(holds) == 2
