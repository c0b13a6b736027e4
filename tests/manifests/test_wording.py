"""Numbers in messages have the right noun and unit, and similar lines become one."""

import pytest

from lotlip_data.manifests import wording


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "file", "1 file"),
        (0, "file", "0 files"),
        (1_200, "further shard", "1,200 further shards"),
        (2, "entry", "2 entries"),
        (3, "batch", "3 batches"),
    ],
)
def test_a_count_has_the_noun_in_singular_or_plural(number: int, noun: str, text: str) -> None:
    assert wording.count(number, noun) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (7 * 3600 + 720, "7 h 12 min"),
        (86_400, "1 day"),
        (10.2 * 86_400, "10 days 4 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(999, "999 B"), (1_234, "1 kB"), (2.5e15, "2,500.0 TB")])
def test_a_size_has_a_decimal_unit(size: float, text: str) -> None:
    assert wording.size(size) == text


def test_lines_that_differ_in_numbers_only_become_one_line_with_their_number() -> None:
    lines = [f"shard {number:05}: timeout after {number} s" for number in range(10_000)] + ["shard 00007: disk is full"]
    assert wording.group(lines) == [
        "shard 00000: timeout after 0 s (and 9,999 more lines like this)",
        "shard 00007: disk is full",
    ]


def test_many_kinds_of_lines_are_counted_and_not_all_shown() -> None:
    lines = [f"{letter}: failed" for letter in "abcdefghijklmnop"]
    grouped = wording.group(lines, shown=3)
    assert grouped == ["a: failed", "b: failed", "c: failed", "13 further lines of other kinds; the log has them all"]
