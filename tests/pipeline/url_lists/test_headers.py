"""The columns of a file are read from its first lines, in every format, and what they hold from their names."""

import gzip
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.url_lists.headers import column_names, found_columns, with_found_columns
from lotlip_data.pipeline.url_lists.rows import ListError

NAMES = ["url", "raw text", "long_IB", "id"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b'url,"raw text",long_IB,id\n'),
        ("a.csv", b"\xef\xbb\xbfurl, raw text ,long_IB,id\r\nx,y,z,1\r\n"),
        ("a.csv", b"\n\nurl;raw text;long_IB;id\n"),
        ("a.csv", b"sep=|\nurl|raw text|long_IB|id\n"),
        ("a.tsv", b'"url"\t"raw text"\tlong_IB\tid\n'),
        ("a.csv.gz", gzip.compress(b"url,raw text,long_IB,id\n", mtime=0)),  # the bytes are a part of the test's name
        ("a.jsonl", b'{"url": 1, "raw text": 2}\nno object\n{"long_IB": 3, "id": 4}\n'),
    ],
)
def test_the_columns_of_a_text_file_are_those_of_its_header(tmp_path: pathlib.Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert column_names(Source(name="a", files=(str(tmp_path / name),)), str(tmp_path / name)) == NAMES


def test_the_columns_of_a_parquet_file_and_of_a_file_without_header(tmp_path: pathlib.Path) -> None:
    file = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({name: ["x"] for name in NAMES}), file)
    assert column_names(Source(name="a", files=(file,)), file) == NAMES
    named = Source(name="a", files=("none.csv",), columns=("link", "IB"), url="find", text=None, captions="find")  # type: ignore[arg-type]
    assert found_columns(named, "none.csv").captions == {"instructblip": "IB"}


def test_each_file_of_a_source_has_its_own_columns(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.csv").write_text("Image Path,raw_caption,longIB_captions\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"URL": "x", "LLaVA": "y"}))
    files = [str(tmp_path / name) for name in ("a.csv", "b.jsonl")]
    source = Source.parse({"name": "a", "files": files, "captions": "find"})
    assert [(each.url, each.text) for each in (with_found_columns(source, file) for file in files)] == [
        ("Image Path", "raw_caption"),
        ("URL", None),
    ]
    plain = Source.parse({"name": "a", "files": files, "url": "x"})
    assert with_found_columns(plain, "no such file") is plain


def test_a_file_that_is_no_list_is_refused_by_its_kind(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.csv").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ListError, match=r"a\.csv: is a Git LFS pointer"):
        column_names(Source(name="a", files=("a.csv",)), str(tmp_path / "a.csv"))
