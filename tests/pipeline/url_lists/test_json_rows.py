"""Files that are JSON but not JSON lines are named as such, and malformed lines cost no other line."""

import json
import pathlib

import pytest

from lotlip_data.pipeline.url_lists.rows import ListError
from tests.pipeline.url_lists.read_lists import read_list

ROWS = [{"url": f"http://a.example/{index}", "caption": f"text {index}"} for index in range(3)]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["l.json", "l.jsonl"])
@pytest.mark.parametrize("count", [3, 40_000])
def test_a_json_array_is_named_as_such(tmp_path: pathlib.Path, name: str, indent: int | None, count: int) -> None:
    (tmp_path / name).write_text(json.dumps(ROWS * (count // 3), indent=indent))
    with pytest.raises(ListError, match=rf"{name}: is one JSON array; it must be JSON lines.*jq -c"):
        read_list(tmp_path / name)


@pytest.mark.parametrize(
    "content", ["[\n{", '[{"url":\n"x"}]', '\n  [\n  {"url": "x"}\n]', '[{"url": "x"},\n{"url": "y"}]']
)
def test_every_way_to_break_the_lines_of_an_array_is_recognised(tmp_path: pathlib.Path, content: str) -> None:
    (tmp_path / "l.json").write_text(content)
    with pytest.raises(ListError, match="is one JSON array"):
        read_list(tmp_path / "l.json")


def test_one_object_over_many_lines_is_named_as_such(tmp_path: pathlib.Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps({"images": ROWS}, indent=2))
    with pytest.raises(ListError, match="is one JSON object over many lines"):
        read_list(tmp_path / "l.json")


def test_a_key_that_stands_twice_makes_its_row_unusable_if_it_is_read(tmp_path: pathlib.Path) -> None:
    lines = [
        '{"url": "http://a.example/0", "caption": "a", "caption": "b"}',
        '{"url": "http://a.example/1", "x": 1, "x": 2, "caption": "c"}',
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    result = read_list(tmp_path / "l.jsonl")
    assert (result.rows, result.reasons) == ([("http://a.example/1", "c")], [(1, "a column stands twice")])


@pytest.mark.parametrize("as_ascii", [False, True])
def test_a_key_in_another_script_that_stands_twice_is_noticed(tmp_path: pathlib.Path, as_ascii: bool) -> None:
    lines = [json.dumps({"url": "http://a.example/0", "Überschrift": "a"}, ensure_ascii=as_ascii)]
    lines.append(lines[0].replace("}", ", " + lines[0].partition(", ")[2]))
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    result = read_list(tmp_path / "l.jsonl", text="Überschrift")
    assert (result.rows, result.reasons) == ([("http://a.example/0", "a")], [(2, "a column stands twice")])


def test_numbers_and_nesting_without_limit_make_only_their_row_unusable(tmp_path: pathlib.Path) -> None:
    lines = [
        '{"url": "http://a.example/0", "caption": ' + "9" * 5000 + "}",
        '{"url": "http://a.example/1", "caption": ' + "[" * 100_000 + "}",
        '{"url": "http://a.example/2", "caption": "a"}',
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    result = read_list(tmp_path / "l.jsonl")
    assert result.rows == [("http://a.example/2", "a")]
    assert [row for row, _ in result.reasons] == [1, 2]
