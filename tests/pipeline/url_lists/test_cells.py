"""Cells of every type are texts, are missing, or are counted by what they are."""

import decimal
import math
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lotlip_data.pipeline.url_lists.cells import GARBLED, decoder, plain, sizes, texts_of
from lotlip_data.pipeline.url_lists.rows import ListError
from tests.pipeline.url_lists.read_lists import ReadList, read_list

URLS = ["http://a.example/0", "http://a.example/1", "http://a.example/2"]


def read_column(folder: pathlib.Path, captions: pa.Array, **settings: object) -> ReadList:
    pq.write_table(pa.table({"url": URLS[: len(captions)], "caption": captions}), folder / "l.parquet")
    return read_list(folder / "l.parquet", **settings)


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
def test_columns_of_texts_of_every_type_are_read_also_under_a_filter(tmp_path: pathlib.Path, kind: pa.DataType) -> None:
    captions = pa.array(["a dog", None, "ü"]).dictionary_encode() if pa.types.is_dictionary(kind) else None
    captions = captions.cast(kind) if captions is not None else pa.array(["a dog", None, "ü"]).cast(kind)
    assert [texts for _, texts in read_column(tmp_path, captions).texts] == [["a dog"], [""], ["ü"]]
    filtered = read_column(tmp_path, captions, filter='caption != "x" and len(caption) > 0')
    assert [texts for _, texts in filtered.texts] == [["a dog"], ["ü"]]
    assert sum(filtered.filtered.values()) == 1


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_view(pa.string())),
        *(pa.large_list_view(pa.string()), pa.list_(pa.string_view()), pa.list_(pa.binary())),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
    ],
    ids=str,
)
def test_each_element_of_a_list_is_a_text(tmp_path: pathlib.Path, kind: pa.DataType) -> None:
    lists = pa.array([["a", None, " b ", "", "a"], [], None], kind)
    result = read_column(tmp_path, lists, filter='url != "x"')
    assert [texts for _, texts in result.texts] == [["a", "b"], [""], [""]]
    assert not result.defects


def test_elements_of_a_list_of_fixed_size_are_texts(tmp_path: pathlib.Path) -> None:
    captions = pa.array([["a", "b"], ["c", None], None], pa.list_(pa.string(), 2))
    assert [texts for _, texts in read_column(tmp_path, captions).texts] == [["a", "b"], ["c"], [""]]


def test_numbers_are_texts_and_nan_infinity_and_null_are_missing(tmp_path: pathlib.Path) -> None:
    for captions, expected in (
        (pa.array([1.5, math.nan, math.inf]), ["1.5", "", ""]),
        (pa.array([1.5, -math.inf, None], pa.float16()), ["1.5", "", ""]),
        (pa.array([decimal.Decimal("1.50"), None]), ["1.50", ""]),
        (pa.array([7, None], pa.uint8()), ["7", ""]),
        (pa.nulls(2), ["", ""]),
        (pa.array([[1.5, math.nan], [math.inf]]), ["1.5", ""]),
    ):
        assert [text for _, text in read_column(tmp_path, captions).rows] == expected
    (tmp_path / "l.jsonl").write_text(
        '{"url": "http://a.example/0", "caption": NaN}\n{"url": NaN, "caption": "a"}\n'
        '{"url": "http://a.example/1", "caption": -Infinity}\n{"url": Infinity, "caption": "a"}\n'
        '{"url": "http://a.example/2", "caption": 1e999}\n'
        '{"url": "http://a.example/3", "caption": ' + "9" * 1900 + "}\n"
    )
    result = read_list(tmp_path / "l.jsonl")
    assert [text for _, text in result.rows] == ["", "", "", "9" * 1900]
    assert result.reasons == [(2, "no URL"), (4, "no URL")]


def test_a_missing_number_in_a_filter_is_unknown_however_it_is_written(tmp_path: pathlib.Path) -> None:
    table = pa.table({"url": URLS, "caption": ["a", "b", "c"], "w": [1.0, math.nan, None]})
    pq.write_table(table, tmp_path / "l.parquet")
    (tmp_path / "l.jsonl").write_text(
        "".join(
            f'{{"url": "{url}", "caption": "a", "w": {w}}}\n' for url, w in zip(URLS, ("1", "NaN", "null"), strict=True)
        )
    )
    for name in ("l.parquet", "l.jsonl"):
        assert read_list(tmp_path / name, filter="w >= 1").filtered == {"unknown whether w >= 1": 2}
        assert [url for url, _ in read_list(tmp_path / name, filter="w is None").rows] == URLS[1:]


@pytest.mark.parametrize(
    "captions",
    [
        pa.array([{"en": "a"}, None]),
        pa.array([[("en", "a")], []], pa.map_(pa.string(), pa.string())),
        pa.array([True, None]),
        pa.array([0, 1], pa.timestamp("s")),
        pa.array([[["a"]], None]),
        pa.array([[{"en": "a"}], None]),
        pa.array([[True], None]),
    ],
    ids=lambda captions: str(captions.type),
)
def test_a_column_of_another_type_is_an_error_that_names_it(tmp_path: pathlib.Path, captions: pa.Array) -> None:
    with pytest.raises(ListError) as error:
        read_column(tmp_path, captions)
    assert str(error.value).startswith(f"{tmp_path / 'l.parquet'}: the column 'caption' is ")
    pq.write_table(pa.table({"url": captions, "caption": ["a", "b"]}), tmp_path / "l.parquet")
    with pytest.raises(ListError, match=r"the column 'url' is .*, not a text"):
        read_list(tmp_path / "l.parquet")


def test_json_cells_of_another_type_are_counted_by_what_they_are(tmp_path: pathlib.Path) -> None:
    cells = ['"a"', '{"en": "a"}', "true", '["b", {"en": "c"}, null]', '[["d"]]', "[]", "null"]
    lines = [f'{{"url": "http://a.example/{index}", "caption": {cell}}}' for index, cell in enumerate(cells)]
    lines.append('{"url": {"en": "a"}, "caption": "a"}')
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    result = read_list(tmp_path / "l.jsonl")
    assert [texts for _, texts in result.texts] == [["a"], [""], [""], ["b"], [""], [""], [""]]
    assert result.defects == {
        "an object": 1,
        "true or false": 1,
        "a list with an element that is an object": 1,
        "a list with an element that is a list": 1,
    }
    assert result.reasons == [(8, "the URL is an object")]


@pytest.mark.parametrize("cell", ['{"en": "a"}', "false", '[{"caption": "a"}]', '[["a"]]'])
def test_a_json_column_whose_cells_are_all_of_another_type_is_an_error(tmp_path: pathlib.Path, cell: str) -> None:
    line = '{{"url": "http://a.example/{}", "caption": {}}}\n'
    (tmp_path / "l.jsonl").write_text(line.format(0, cell) + line.format(1, "null"))
    with pytest.raises(ListError, match=r"l\.jsonl: every cell of the column 'caption' is .*, not a text or a list"):
        read_list(tmp_path / "l.jsonl")


def test_texts_are_decoded_as_the_source_says_and_garbled_ones_are_counted(tmp_path: pathlib.Path) -> None:
    texts = ["someone%27s+red+boat", "100% cotton + silk", "caf%E9", "caf%C3%A9", "a%20b c+d"]
    (tmp_path / "l.jsonl").write_text(
        "".join(f'{{"url": "http://a.example/{index}", "caption": "{text}"}}\n' for index, text in enumerate(texts))
    )
    result = read_list(tmp_path / "l.jsonl", decode="url")
    assert [text for _, text in result.rows] == [
        *("someone's red boat", "100% cotton + silk", "caf\ufffd", "café", "a b c+d"),
    ]
    assert result.defects == {GARBLED: 1}
    assert [text for _, text in read_list(tmp_path / "l.jsonl").rows] == texts
    html = decoder("html")
    assert html is not None
    assert texts_of("Tom &amp; Jerry&#39;s &nbsp;", html) == (["Tom & Jerry's"], None)
    assert texts_of("half &#xD800; a pair", html) == (["half \ufffd a pair"], GARBLED)


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["abc", None, ""]),
        pa.array(["abc", None, ""], pa.string_view()),
        pa.array(["abc", None, ""]).dictionary_encode(),
        pc.run_end_encode(pa.array(["abc", None, ""])),
    ],
    ids=lambda values: str(values.type),
)
def test_sizes_of_cells_are_those_of_their_plain_values(values: Any) -> None:
    expected = [3, 0, 0] if not pa.types.is_run_end_encoded(values.type) else None
    assert plain(values).to_pylist() == ["abc", None, ""]
    if expected:
        assert sizes(values).tolist() == expected
        assert sizes(values.slice(1)).tolist() == expected[1:]


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.string_view(), pa.binary_view(), pa.dictionary(pa.int8(), pa.string())),
        *(pa.list_(pa.string()), pa.list_view(pa.string()), pa.large_list_view(pa.string_view())),
        *(pa.list_(pa.string(), 2), pa.list_(pa.string_view())),
    ],
    ids=str,
)
def test_the_plain_form_of_a_slice_has_its_values(kind: pa.DataType) -> None:
    is_nested = kind.num_fields > 0
    cells: list[Any] = (
        [["a", "b"], ["c", "d"], None, ["e", "f"], ["g", "h"]] if is_nested else ["a", "bc", None, "d", "e"]
    )
    values = pa.array(cells, kind)
    expected = values.to_pylist()
    for begin, end in ((0, 5), (1, 4), (3, 5)):
        part = plain(values.slice(begin, end - begin))
        assert part.to_pylist() == expected[begin:end]
        assert part.take(pa.array([1, 0])).to_pylist() == [expected[begin + 1], expected[begin]]


def test_sizes_of_lists_count_their_elements() -> None:
    lists = pa.array([["abc", "de"], None, [], ["f"]])
    for kind in (lists.type, pa.list_view(pa.string()), pa.large_list(pa.string_view())):
        values = pa.array(lists.to_pylist(), kind)
        assert sizes(values).tolist() == [21, 0, 0, 9]
        assert sizes(values.slice(3)).tolist() == [9]
