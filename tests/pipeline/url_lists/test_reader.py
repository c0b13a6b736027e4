"""Every format gives the same rows, a bad row affects no other, and an unreadable list is an error with a reason."""

import gzip
import json
import pathlib
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.url_lists.cells import GARBLED
from lotlip_data.pipeline.url_lists.reader import read_source
from lotlip_data.pipeline.url_lists.rows import BATCH_ROWS, BadRow, ListError

ROWS = [
    ("http://a.example/1.jpg", "a dog, on the beach"),
    ("https://b.example/2.jpg?x=1&y=é", 'the "big" one'),
    ("http://a.example/3.jpg", ""),
    ("http://c.example/ü 4.jpg", "naïve café ☕"),
]


def write(path: pathlib.Path, rows: list[tuple[str, str]] = ROWS) -> str:
    kind = path.name.split(".")[1]
    if kind == "parquet":
        pq.write_table(pa.table({"url": [row[0] for row in rows], "caption": [row[1] for row in rows]}), path)
        return str(path)
    if kind == "jsonl":
        text = "".join(json.dumps({"caption": text, "url": url}) + "\n" for url, text in rows)
    elif kind == "tsv":
        text = "url\tcaption\n" + "".join(f"{url}\t{text}\n" for url, text in rows)
    else:
        doubled = [(url, text.replace('"', '""')) for url, text in rows]
        text = "url,caption\n" + "".join(f'{url},"{text}"\n' for url, text in doubled)
    data = text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pa.compress(data, "zstd", asbytes=True)
    path.write_bytes(data)
    return str(path)


def read_all(*files: str, **settings: object) -> tuple[list[tuple[str, str]], list[BadRow]]:
    bad: list[BadRow] = []
    source = Source.model_validate({"name": "mine", "files": files} | settings)
    rows = [row for batch in read_source(source, bad.append) for row in batch.to_pylist()]
    assert all(row["uid"] == uid_from_url(row["url"]) for row in rows)
    return [(row["url"], "|".join(row["texts"])) for row in rows], bad


@pytest.mark.parametrize(
    "name", ["l.csv", "l.tsv", "l.jsonl", "l.parquet", "l.csv.gz", "l.tsv.zst", "l.jsonl.gz", "l.csv.zst"]
)
def test_every_format_and_compression_gives_the_same_rows(tmp_path: pathlib.Path, name: str) -> None:
    assert read_all(write(tmp_path / name)) == (ROWS, [])


def test_rows_of_many_batches_keep_their_order(tmp_path: pathlib.Path) -> None:
    rows = [(f"http://a.example/{index}.jpg", f"text {index}") for index in range(8_200)]
    for name in ("l.csv", "l.jsonl", "l.parquet"):
        assert read_all(write(tmp_path / name, rows)) == (rows, [])


def test_a_tsv_has_no_quoting_and_no_header_if_the_source_names_its_columns(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "cc3m.tsv"
    file.write_text('a "quoted word\thttp://a.example/1.jpg\r\n"\thttp://a.example/2.jpg\n')
    rows, bad = read_all(str(file), columns=["caption", "url"])
    assert rows == [("http://a.example/1.jpg", 'a "quoted word'), ("http://a.example/2.jpg", '"')]
    assert bad == []


def test_a_csv_can_have_line_breaks_and_delimiters_in_quotes_and_a_byte_order_mark(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "l.csv"
    file.write_bytes(b'\xef\xbb\xbfurl,caption\r\nhttp://a.example/1.jpg,"two\nlines, one ""row"""\r\n')
    assert read_all(str(file)) == ([("http://a.example/1.jpg", 'two\nlines, one "row"')], [])


def test_malformed_rows_are_rejected_with_row_number_and_reason_and_affect_no_other_row(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "l.csv"
    good = [f"http://a.example/{index}.jpg" for index in range(4)]
    lines = [b"url,caption", f"{good[0]},x".encode(), b"only one cell", b"ftp://a.example/x,x", b",no url", b""]
    lines += [f"{good[1]},bad utf8 \xff".encode("latin-1"), b"http://a.example/\xff.jpg,x", b"http://,x"]
    lines += [f"{good[2]},x".encode(), b"http://[broken/x,x"]
    lines += [b"x" * (1 << 20) + b"," + b"y" * 100, f"{good[3]},x".encode()]
    file.write_bytes(b"\n".join(lines))
    rows, bad = read_all(str(file))
    assert [row[0] for row in rows] == good
    assert rows[1][1] == "bad utf8 \ufffd"
    bad.sort(key=lambda row: row.row)
    assert [row.reason for row in bad] == [
        "wrong number of columns",
        "not an http or https URL",
        "no URL",
        "URL not in UTF-8",
        "the URL names no host",
        "malformed URL",
        "line too long",
    ]
    assert (bad[0].row, bad[0].file, bad[0].content) == (2, str(file), "only one cell")


@pytest.mark.parametrize("name", ["l.csv", "l.tsv.gz", "l.jsonl", "l.parquet", "words.parquet"])
def test_rows_whose_text_is_not_in_utf8_are_kept_and_counted(tmp_path: pathlib.Path, name: str) -> None:
    """A text that contains U+FFFD is valid UTF-8 and does not count."""
    texts = [text.encode("latin-1") for text in ("plain", "un café", "naïve")] + ["☕ \ufffd".encode()]
    lines = [b'{"url": "http://a.example/%d", "caption": "%b"}' % pair for pair in enumerate(texts)]
    if "parquet" in name:
        urls = [f"http://a.example/{index}" for index in range(4)]
        captions = pa.array(texts, pa.binary()).view(pa.string())  # as from a writer that does not validate
        columns = {"url": urls, "caption": captions.dictionary_encode() if "words" in name else captions}
        pq.write_table(pa.table(columns), tmp_path / name)
    elif "jsonl" in name:
        (tmp_path / name).write_bytes(b"\n".join(lines))
    else:
        mark = b"," if "csv" in name else b"\t"
        cells = [b"http://a.example/%d" % index + mark + text for index, text in enumerate(texts)]
        data = b"\n".join([b"url" + mark + b"caption", *cells])
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    counted = Counter[str]()
    source = Source(name="mine", files=(str(tmp_path / name),))
    batches = list(read_source(source, pytest.fail, defects=lambda defect, rows: counted.update({defect: rows})))
    assert [texts for batch in batches for texts in batch["texts"].to_pylist()] == [
        *(["plain"], ["un caf\ufffd"], ["na\ufffdve"], ["☕ \ufffd"]),
    ]
    assert counted == {GARBLED: 2}


def test_an_unclosed_quote_costs_its_own_row_only(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "l.csv"
    rows = [f"http://a.example/{index}.jpg,text {index}" for index in range(20_000)]
    rows[10] = 'http://a.example/10.jpg,"never closed'
    file.write_text("\n".join(["url,caption", *rows]))
    kept, bad = read_all(str(file))
    assert [(row.row, row.reason) for row in bad] == [(11, "not CSV: a stray quote (see `quoting`)")]
    assert [text for _, text in kept] == [f"text {index}" for index in range(20_000) if index != 10]


def test_bad_json_lines_are_rejected_and_unusual_values_are_read(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "l.jsonl"
    lines = ['{"url": "http://a.example/1", "caption": 7}', "[1, 2]", "{broken", "", '{"caption": "no url"}']
    lines += ['{"url": "http://a.example/2", "caption": null}', '{"url": ["x"], "caption": "x"}', "[" * 100_000]
    lines += ['{"url": "http://a.example/3", "caption": "half a pair \\ud800"}']
    file.write_text("\n".join(lines))
    rows, bad = read_all(str(file))
    assert rows == [
        ("http://a.example/1", "7"),
        ("http://a.example/2", ""),
        ("http://a.example/3", "half a pair \ufffd"),
    ]
    reasons = {row.row: row.reason for row in bad}
    assert reasons == dict.fromkeys((2, 3, 8), "not a JSON object") | {5: "no URL", 7: "the URL is a list"}


def test_patterns_match_many_files_and_brackets_in_folder_names_are_literal(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "lists [new] ?"
    folder.mkdir()
    for index, row in enumerate(ROWS):
        write(folder / f"part{index}.csv", [row])
    assert read_all(f"{folder}/part*.csv") == (ROWS, [])
    with pytest.raises(ListError, match=r"part\*\.tsv: no file matches"):
        read_all(f"{folder}/part*.tsv")


def test_an_fsspec_url_is_read_like_a_path() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/lists/l.csv", b"url,caption\nhttp://a.example/1.jpg,x\n")
    for file in ("memory://lists/l.csv", "memory://lists/*.csv"):
        assert read_all(file) == ([("http://a.example/1.jpg", "x")], [])


@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.jsonl", "l.parquet"])
def test_a_missing_column_is_an_error_with_the_file_and_its_columns(tmp_path: pathlib.Path, name: str) -> None:
    file = write(tmp_path / name)
    with pytest.raises(ListError) as error:
        read_all(file, text="alt")
    assert str(error.value).startswith(f"{file}: has no column 'alt'; its columns are ")
    assert "'url'" in str(error.value)
    assert "'caption'" in str(error.value)


def test_a_list_without_rows_or_content_gives_no_rows(tmp_path: pathlib.Path) -> None:
    for name, content in (("a.csv", ""), ("b.csv", "url,caption\n"), ("c.jsonl", ""), ("d.tsv", "url\tcaption")):
        (tmp_path / name).write_text(content)
        assert read_all(str(tmp_path / name)) == ([], [])


def test_unreadable_files_are_an_error_with_the_file_and_the_reason(tmp_path: pathlib.Path) -> None:
    complete = gzip.compress(b"url,caption\n" + b"http://a.example/1.jpg,x\n" * 10_000)
    (tmp_path / "broken.csv.gz").write_bytes(complete[:12] + b"not deflated")
    (tmp_path / "cut.csv.gz").write_bytes(complete[:-20])
    (tmp_path / "wide.csv").write_bytes("url,caption\n".encode("utf-16"))
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "folder.csv").mkdir()
    for name, message in (
        ("broken.csv.gz", "cannot be read: zlib inflate failed"),
        ("cut.csv.gz", "cannot be read: Truncated compressed stream"),
        ("wide.csv", "is UTF-16; convert it to UTF-8"),
        ("empty.parquet", "cannot be read: Parquet file size is 0 bytes"),
        ("folder.csv", "is a folder"),
        ("missing.csv", "there is no such file"),
    ):
        with pytest.raises(ListError) as error:
            read_all(str(tmp_path / name))
        assert f"{tmp_path / name}: {message}" in str(error.value)


@pytest.mark.parametrize("name", ["l.csv", "l.tsv.gz", "l.jsonl", "l.parquet"])
def test_a_filter_keeps_the_rows_for_which_it_is_true_and_counts_the_others_by_rule(
    tmp_path: pathlib.Path, name: str
) -> None:
    columns = {
        "url": [f"http://a.example/{index}" for index in range(6)],
        "caption": ["a dog", "a cat", "Stock photo of a dog", "a dog", "a dog", "a dog"],
        "sim": [0.3, 0.31, 0.9, None, 0.1, 0.5],
        "size": [300, 256, 400, 500, 600, 100],
    }
    table, file = pa.table(columns), tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(table, file)
    elif "jsonl" in name:
        file.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        mark = "," if "csv" in name else "\t"
        cells = [list(columns), *zip(*columns.values(), strict=True)]
        text = "".join(mark.join("" if cell is None else str(cell) for cell in row) + "\n" for row in cells).encode()
        file.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    rule = 'sim >= 0.3 and size >= 256 and not matches(caption, "(?i)stock")'
    source, counts = Source(name="mine", files=(str(file),), filter=rule), dict[str, int]()
    rows = [
        row["url"][-1] for batch in read_source(source, pytest.fail, counts.__setitem__) for row in batch.to_pylist()
    ]
    assert rows == ["0", "1"]
    assert counts == {
        "fails sim >= 0.3": 1,
        "unknown whether sim >= 0.3": 1,
        "fails size >= 256": 1,
        "fails not matches(caption, '(?i)stock')": 1,
    }


@pytest.mark.parametrize("rule", ["not unsafe", "unsafe == False", "unsafe != True"])
def test_a_filter_gives_the_same_rows_wherever_values_of_json_are_missing_or_of_another_type(
    tmp_path: pathlib.Path, rule: str
) -> None:
    values = [False, True, *[None] * (2 * BATCH_ROWS), "unknown", 1, False]
    lines = [{"url": f"http://a.example/{row}", "caption": "x", "unsafe": value} for row, value in enumerate(values)]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    counts: Counter[str] = Counter()
    source = Source(name="mine", files=(str(tmp_path / "l.jsonl"),), filter=rule)
    batches = read_source(source, pytest.fail, lambda reason, rows: counts.update({reason: rows}))
    rows = [row["url"] for batch in batches for row in batch.to_pylist()]
    assert rows == ["http://a.example/0", f"http://a.example/{len(values) - 1}"]
    assert counts == {f"fails {rule}": 1, f"unknown whether {rule}": 2 * BATCH_ROWS + 2}


@pytest.mark.parametrize("rule", ['kind == "x"', "len(kind) < 9", 'lower(kind) in ["x"]', "kind is not None"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.binary_view()])
def test_a_filter_reads_bytes_as_text_and_a_cell_that_is_not_utf8_costs_no_other(
    tmp_path: pathlib.Path, rule: str, kind: pa.DataType
) -> None:
    cells = pa.array([b"x", b"x" * 9, b"caf\xe9" * 9, None], kind if kind != pa.string() else pa.binary())
    if kind == pa.string():  # some writers declare bytes as strings without a check
        cells = pa.Array.from_buffers(pa.string(), 4, cells.buffers())
    urls = [f"http://a.example/{row}" for row in range(4)]
    pq.write_table(pa.table({"url": urls, "caption": ["t"] * 4, "kind": cells}), tmp_path / "l.parquet")
    rows, bad = read_all(str(tmp_path / "l.parquet"), filter=rule)
    assert [url for url, _ in rows] == (urls[:3] if "None" in rule else urls[:1])
    assert bad == []


def test_a_filter_that_does_not_fit_its_list_is_an_error_with_the_file_and_the_column(tmp_path: pathlib.Path) -> None:
    pq.write_table(pa.table({"url": ["http://a.example/1"], "caption": ["x"], "tags": [["a"]]}), tmp_path / "l.parquet")
    for rule, message in (
        ("similarity > 0.3", "has no column 'similarity'; its columns are 'url', 'caption', 'tags'"),
        ("tags > 3", r"the `filter` of source mine: `tags > 3` does not fit the columns \(tags is list<.*>\)"),
        ("len(caption)", r"the `filter` of source mine: `len\(caption\)` gives int32, not true or false"),
    ):
        with pytest.raises(ListError, match=rf"l\.parquet: {message}"):
            read_all(str(tmp_path / "l.parquet"), filter=rule)


CELLS = (f'"{"a" * 64}"', "null", "NaN", "true", '{"a": 1}')
"""Hashes in JSON: one, two that are missing, and two that are none."""


def test_expected_hashes_are_read_in_lower_case_and_a_malformed_one_rejects_its_row(tmp_path: pathlib.Path) -> None:
    lines = [f"http://a.example/1,x,{'AB' * 32},{'c' * 32}", "http://a.example/2,x,,", "http://a.example/3,x,abc,"]
    (tmp_path / "l.csv").write_text("\n".join(["url,caption,sha,md", *lines]))
    bad: list[BadRow] = []
    source = Source(name="mine", files=(str(tmp_path / "l.csv"),), hash={"sha": "sha256", "md": "md5"})
    rows = [row for batch in read_source(source, bad.append) for row in batch.to_pylist()]
    assert [(row["expected_sha256"], row["expected_md5"]) for row in rows] == [("ab" * 32, "c" * 32), (None, None)]
    assert [(row.row, row.reason) for row in bad] == [(3, "malformed sha256")]
    lines = [
        f'{{"url": "http://a.example/{index}", "caption": "x", "sha": {cell}}}' for index, cell in enumerate(CELLS)
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    bad.clear()
    source = Source(name="mine", files=(str(tmp_path / "l.jsonl"),), hash={"sha": "sha256"})
    rows = [row for batch in read_source(source, bad.append) for row in batch.to_pylist()]
    assert [row["expected_sha256"] for row in rows] == ["a" * 64, None, None]
    assert [(row.row, row.reason) for row in bad] == [(4, "malformed sha256"), (5, "malformed sha256")]
