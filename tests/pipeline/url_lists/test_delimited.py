"""A malformed row of a CSV or TSV costs no other row, and no text holds another row."""

import pathlib

import pytest

from lotlip_data.pipeline.url_lists.rows import MAX_LINE_CHARACTERS, ListError
from tests.pipeline.url_lists.read_lists import read_list

STRAY = "not CSV: a stray quote (see `quoting`)"


def url(index: int) -> str:
    return f"http://a.example/{index}.jpg"


def write(path: pathlib.Path, text: str) -> pathlib.Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("url,caption", [f'{url(0)},"a dog', f"{url(1)},a cat", f"{url(2)},b"]),
        ("caption,url", [f'"a red, big boat,{url(0)}', f'"a dog",{url(1)}', f"a house,{url(2)}"]),
        ("id,url,caption", [f'0,{url(0)},"a dog', f"1,{url(1)},a cat", f'2,{url(2)},a "b"']),
        ("caption;url", [f'"a boat;{url(0)}', f"a dog;{url(1)}", f'"a house";{url(2)}']),
    ],
)
def test_a_stray_quote_costs_its_own_row_and_no_text_holds_another_row(
    tmp_path: pathlib.Path, header: str, lines: list[str]
) -> None:
    result = read_list(write(tmp_path / "l.csv", "\n".join([header, *lines])))
    assert [row[0] for row in result.rows] == [url(1), url(2)]
    assert not any("http" in text for _, text in result.rows)
    assert result.reasons == [(1, STRAY)]


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("url,caption", [f'{url(0)},"a dog', f'{url(1)},a cat"', f"{url(2)},b"]),
        ("caption,url", [f'"a red boat,{url(0)}', f'a dog asleep",{url(1)}', f"a house,{url(2)}"]),
        ("caption;url", [f'"a boat;{url(0)}', f'a dog";{url(1)}', f"a house;{url(2)}"]),
        ("url,caption", [f'{url(0)},"by joe', 'http://joe.example/, with a rope"', f"{url(2)},b"]),
    ],
)
def test_the_line_that_seems_to_close_a_stray_quote_is_counted_and_never_stored(
    tmp_path: pathlib.Path, header: str, lines: list[str]
) -> None:
    """It has a stray quote of its own, or is the rest of a text that holds a URL."""
    result = read_list(write(tmp_path / "l.csv", "\n".join([header, *lines])))
    assert [row[0] for row in result.rows] == [url(2)]
    assert result.reasons == [(1, STRAY), (2, STRAY)]


def test_texts_with_line_breaks_stay_whole_wherever_the_url_stands(tmp_path: pathlib.Path) -> None:
    text = "two\nlines, one row\nby joe, http://joe.example\nhttp://joe.example"
    for header, row in (("url,caption", f'{url(0)},"{text}"'), ("caption,url", f'"{text}",{url(0)}')):
        result = read_list(write(tmp_path / "l.csv", f"{header}\n{row}\n"))
        assert (result.rows, result.bad) == ([(url(0), text)], [])


def test_a_quote_within_an_unquoted_cell_is_a_part_of_the_text(tmp_path: pathlib.Path) -> None:
    result = read_list(write(tmp_path / "l.csv", f'url,caption\n{url(0)},a 5" pipe\n'))
    assert result.rows == [(url(0), 'a 5" pipe')]


def test_text_after_a_closing_quote_makes_a_row_malformed(tmp_path: pathlib.Path) -> None:
    result = read_list(write(tmp_path / "l.csv", f'url,caption\n{url(0)},"a" dog\n{url(1)},b\n'))
    assert (result.rows, result.reasons) == ([(url(1), "b")], [(1, STRAY)])


def test_an_escaped_quote_after_the_lines_that_decide_is_counted_with_the_setting_to_use(
    tmp_path: pathlib.Path,
) -> None:
    lines = [f"{url(index)},{'x' * 100}" for index in range(10_000)]
    file = write(tmp_path / "l.csv", "\n".join(["url,caption", *lines, f'{url(10_000)},"a \\"b\\" c"']))
    result = read_list(file)
    assert (len(result.rows), result.reasons) == (
        10_000,
        [(10_001, "not CSV: a backslash before a quote (see `escape`)")],
    )
    result = read_list(file, escape="\\")
    assert (result.rows[-1], result.bad) == ((url(10_000), 'a "b" c'), [])


def test_blank_lines_before_the_header_and_between_rows_are_no_rows(tmp_path: pathlib.Path) -> None:
    for name, mark in (("l.csv", ","), ("l.tsv", "\t")):
        text = f"\ufeff\n  \nurl{mark}caption\n\n{url(0)}{mark}a\n \n{url(1)}{mark}b\n\n"
        result = read_list(write(tmp_path / name, text))
        assert (result.rows, result.bad) == ([(url(0), "a"), (url(1), "b")], [])


@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.jsonl", "l.txt"])
def test_lines_can_end_with_carriage_returns_alone(tmp_path: pathlib.Path, name: str) -> None:
    content = {
        "csv": f'url,caption\r{url(0)},"a ""quoted"", text"\r{url(1)},b\r',
        "tsv": f"url\tcaption\r{url(0)}\ta\r{url(1)}\tb",
        "jsonl": f'{{"url": "{url(0)}", "caption": "a"}}\r{{"url": "{url(1)}", "caption": "b"}}',
        "txt": f"{url(0)}\r{url(1)}\r",
    }
    result = read_list(write(tmp_path / name, content[name.split(".")[1]]))
    assert [row[0] for row in result.rows] == [url(0), url(1)]
    assert result.bad == []


def test_a_cell_can_be_as_long_as_a_line(tmp_path: pathlib.Path) -> None:
    long_text = "word " * 28_000
    too_long = "line\n" * (MAX_LINE_CHARACTERS // 5)
    lines = ["url,caption", f"{url(0)},a", f'{url(1)},"{long_text}"', f'{url(2)},"{too_long}"', f"{url(3)},d"]
    result = read_list(write(tmp_path / "l.csv", "\n".join(lines)))
    assert result.rows == [(url(0), "a"), (url(1), long_text.strip()), (url(3), "d")]
    assert result.reasons[0] == (3, STRAY)
    assert {reason for _, reason in result.reasons[1:]} == {"wrong number of columns", STRAY}


def test_a_line_that_is_too_long_does_not_shorten_a_text_around_it(tmp_path: pathlib.Path) -> None:
    lines = [f'{url(0)},"a', "x" * (MAX_LINE_CHARACTERS + 1), 'b"', f"{url(1)},c"]
    result = read_list(write(tmp_path / "l.csv", "\n".join(["url,caption", *lines])))
    assert result.rows == [(url(1), "c")]
    assert [reason for _, reason in result.reasons] == [STRAY, "line too long", "wrong number of columns"]


def test_a_column_that_stands_twice_is_an_error_only_if_it_is_read(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "l.csv", f"x,url,x,caption,Caption\n1,{url(0)},2,a,b\n")
    assert read_list(file).rows == [(url(0), "a")]
    with pytest.raises(ListError, match=r"l\.csv: has the column 'x' twice, as columns 1 and 3"):
        read_list(file, text="x")


def test_a_missing_column_suggests_the_same_name_in_other_letters_and_lists_without_texts(
    tmp_path: pathlib.Path,
) -> None:
    file = write(tmp_path / "l.csv", f"URL,alt\n{url(0)},a\n")
    with pytest.raises(ListError, match=r"has no column 'url' \(did you mean 'URL'\?\).*set `text: null`"):
        read_list(file)
    assert read_list(file, url="URL", text=None).texts == [(url(0), [""])]


def test_a_list_of_bare_urls_with_a_second_cell_is_refused(tmp_path: pathlib.Path) -> None:
    for line in (f"{url(0)}\ta dog", f" {url(0)} \t"):
        expected = "most of its lines have more after the URL" if "dog" in line else None
        file = write(tmp_path / "l.txt", f"\n{line}\n" * 3 + f"{url(1)}\n" * 2)
        if expected is None:
            assert [row[0] for row in read_list(file).rows] == [url(0)] * 3 + [url(1)] * 2
            continue
        with pytest.raises(ListError, match=rf"l\.txt: {expected}, separated by a tab; set `format: tsv`"):
            read_list(file)


def test_a_quote_that_joins_rows_of_one_column_costs_only_its_own_row(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "l.csv", f'url\n{url(0)}\n"{url(1)}\n{url(2)}\n{url(3)}"\n{url(4)}\n')
    result = read_list(file, text=None)
    assert [row[0] for row in result.rows] == [url(0), url(2), url(4)]
    assert result.reasons == [(2, STRAY), (4, STRAY)]


def test_a_list_of_bare_urls_has_no_header_and_no_texts(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "l.txt", f"{url(0)}\r\n\r\n{url(1)}?a=1,2\tx\r\nnot a url\r\n")
    result = read_list(file)
    assert result.texts == [(url(0), [""]), (f"{url(1)}?a=1,2\tx", [""])]
    assert result.reasons == [(4, "not an http or https URL")]
    file = write(tmp_path / "l.csv", f"{url(0)}\n{url(1)}\n")
    with pytest.raises(ListError, match="If it is a list of bare URLs, set `format: txt`"):
        read_list(file)
    assert [row[0] for row in read_list(file, format="txt").rows] == [url(0), url(1)]


def test_null_bytes_are_a_part_of_the_text(tmp_path: pathlib.Path) -> None:
    result = read_list(write(tmp_path / "l.csv", f"url,caption\n{url(0)},a\0b\n"))
    assert result.rows == [(url(0), "a\0b")]
