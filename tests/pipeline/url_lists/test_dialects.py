"""Delimiters, quotes and escapes are detected, said, and overridden by the settings of a source."""

import csv
import io
import pathlib

import pytest

from lotlip_data.pipeline.url_lists.rows import ListError
from tests.pipeline.url_lists.read_lists import read_list

TEXTS = ["plain", 'a "quoted" word', "a, comma; a | bar", "two\nlines", "back\\slash C:\\new", "", "tab\tin it", '"']
URLS = [f"http://a.example/{index}" for index in range(len(TEXTS))]
ROWS = list(zip(URLS, TEXTS, strict=True))


def written(delimiter: str = ",", header: bool = True, **options: object) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n", **options).writerows(  # type: ignore[arg-type]
        [("url", "caption")] * header + ROWS
    )
    return text.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
@pytest.mark.parametrize("name", ["l.csv", "l.tsv"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_tables_of_pandas_are_read_as_written_with_any_delimiter(
    tmp_path: pathlib.Path, delimiter: str, name: str, quoting: int
) -> None:
    (tmp_path / name).write_text(written(delimiter, quoting=quoting))
    result = read_list(tmp_path / name)
    assert (result.rows, result.bad) == ([(url, text.strip()) for url, text in ROWS], [])
    usual = {"l.csv": ",", "l.tsv": "\t"}[name]
    assert any("separated by" in remark for remark in result.remarks) == (delimiter != usual)


def test_a_header_in_quotes_means_that_all_cells_can_be_quoted(tmp_path: pathlib.Path) -> None:
    lines = [
        f'"{url}"\t"{text}"' for url, text in (("url", "caption"), (URLS[0], 'a \\"quoted\\" word'), (URLS[1], "b"))
    ]
    (tmp_path / "l.tsv").write_text("\n".join(lines))
    result = read_list(tmp_path / "l.tsv")
    assert (result.rows, result.bad) == ([(URLS[0], 'a "quoted" word'), (URLS[1], "b")], [])
    assert [sum(word in remark for remark in result.remarks) for word in ("cells are quoted;", "as Spark")] == [1, 1]


def test_spaces_after_delimiters_belong_to_no_quoted_cell(tmp_path: pathlib.Path) -> None:
    rows = f'{URLS[0]}, "a, ""b"" c"\n{URLS[1]},  d\n{URLS[2]}, "e\nf"\n'
    (tmp_path / "l.csv").write_text(f"url, caption\n{rows}")
    result = read_list(tmp_path / "l.csv")
    assert (result.rows, result.bad) == ([(URLS[0], 'a, "b" c'), (URLS[1], "d"), (URLS[2], "e\nf")], [])
    assert any("a space follows each ','" in remark for remark in result.remarks)
    (tmp_path / "l.csv").write_text(f'url,caption\n{URLS[0]}, "a" b\n')
    assert read_list(tmp_path / "l.csv").rows == [(URLS[0], '"a" b')]


def test_the_number_of_columns_decides_the_delimiter_of_a_file_without_header(tmp_path: pathlib.Path) -> None:
    (tmp_path / "l.csv").write_text(written(";", header=False))
    assert read_list(tmp_path / "l.csv", columns=["url", "caption"]).rows == [(url, text.strip()) for url, text in ROWS]


def test_quotes_after_backslashes_are_read_as_spark_writes_them(tmp_path: pathlib.Path) -> None:
    def spark(text: str) -> str:
        if not any(sign in text for sign in '",\n'):
            return text  # without escapes
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    texts = [*TEXTS, "ends with \\", '\\"', "a, \\", "\\\\server, \\n"]
    lines = "".join(f"http://a.example/{index},{spark(text)}\n" for index, text in enumerate(texts))
    (tmp_path / "l.csv").write_text(f"url,caption\n{lines}")
    result = read_list(tmp_path / "l.csv")
    assert [text for _, text in result.rows] == [text.strip() for text in texts]
    assert result.bad == []
    assert [("as Spark writes it" in remark) for remark in result.remarks] == [True]
    assert len(read_list(tmp_path / "l.csv", escape='"').bad) >= 3


def test_texts_in_a_tsv_that_only_look_quoted_keep_their_quotes(tmp_path: pathlib.Path) -> None:
    for texts in (['a "big" dog', '"'], ['"hello world"', "b"], ['"a" and "b"', '"x"'], ['"', '"'], ['5" pipe', '""']):
        lines = "".join(f"{text}\thttp://a.example/{index}\n" for index, text in enumerate(texts))
        (tmp_path / "l.tsv").write_text(lines)
        result = read_list(tmp_path / "l.tsv", columns=["caption", "url"])
        assert [text for _, text in result.rows] == texts, texts
        assert result.remarks == []


def test_the_settings_of_the_source_override_what_is_detected(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "l.tsv"
    file.write_text('url\tcaption\nhttp://a.example/1\t"a ""b"" c"\n')
    assert read_list(file).rows == [("http://a.example/1", 'a "b" c')]
    assert read_list(file, quoting=False).rows == [("http://a.example/1", '"a ""b"" c"')]
    (tmp_path / "l.csv").write_text("url;caption\nhttp://a.example/1;a\n")
    assert read_list(tmp_path / "l.csv", delimiter=";").remarks == []
    with pytest.raises(ListError, match="its columns are 'url;caption'"):
        read_list(tmp_path / "l.csv", delimiter=",")


def test_the_first_line_by_which_excel_names_the_delimiter_is_no_row(tmp_path: pathlib.Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbfsep=;\r\nurl;caption\r\nhttp://a.example/1;a, b\r\n")
    result = read_list(tmp_path / "l.csv")
    assert (result.rows, result.bad) == ([("http://a.example/1", "a, b")], [])
