"""Lists are regular files or URLs of text or Parquet, compressed as their content says; others are named."""

import bz2
import gzip
import io
import lzma
import os
import pathlib
import pickle
import socket
import zipfile

import pyarrow as pa
import pyarrow.feather
import pytest

from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.url_lists import text_lines
from lotlip_data.pipeline.url_lists.files import files_of, stamp_of
from lotlip_data.pipeline.url_lists.rows import ListError
from tests.pipeline.url_lists.read_lists import read_list

CONTENT = b"url,caption\nhttp://a.example/1,a\n"
ROWS = [("http://a.example/1", "a")]
COMPRESSED = {
    "csv": CONTENT,
    "gz": gzip.compress(CONTENT),
    "zst": pa.compress(CONTENT, "zstd", asbytes=True),
    "bz2": bz2.compress(CONTENT),
}


@pytest.mark.parametrize("named", COMPRESSED)
@pytest.mark.parametrize("kind", COMPRESSED)
def test_the_content_decides_how_a_file_is_compressed(tmp_path: pathlib.Path, named: str, kind: str) -> None:
    file = tmp_path / ("l.csv" if named == "csv" else f"l.csv.{named}")
    file.write_bytes(COMPRESSED[kind])
    result = read_list(file)
    assert result.rows == ROWS
    assert [("unlike its name" in remark) for remark in result.remarks] == [True] * (named != kind)


def test_members_of_a_gzip_file_follow_each_other(tmp_path: pathlib.Path) -> None:
    (tmp_path / "l.csv.gz").write_bytes(COMPRESSED["gz"] + gzip.compress(b"http://a.example/2,b\n"))
    assert read_list(tmp_path / "l.csv.gz").rows == [*ROWS, ("http://a.example/2", "b")]


def archive() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("l.csv", CONTENT)
    return data.getvalue()


def feather() -> bytes:
    data = io.BytesIO()
    pyarrow.feather.write_feather(pa.table({"url": ["http://a.example/1"]}), data)
    return data.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(), "is a ZIP archive or an Excel workbook"),
        (lzma.compress(CONTENT), "is compressed with xz; decompress it with `unxz`"),
        (gzip.compress(gzip.compress(CONTENT, mtime=0), mtime=0), "is compressed twice"),
        (feather(), r"is an Arrow IPC \(Feather\) file; write it as Parquet"),
        (pickle.dumps({"a": 1}), "is a Python pickle"),
        (b"PAR1" + bytes(100), "is a Parquet file; set `format: parquet`"),
        (b"SQLite format 3\x00", "is an SQLite database"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer.*git lfs pull"),
        (b"\n <!DOCTYPE html>\n<html>", "is an HTML or XML page, not a list; does its URL need a login?"),
        (b'<?xml version="1.0"?><Error/>', "is an HTML or XML page"),
        (CONTENT.decode().encode("utf-16"), "is UTF-16; convert it to UTF-8"),
        (CONTENT.decode().encode("utf-16-be"), "is UTF-16; convert it to UTF-8"),
        (CONTENT.decode().encode("utf-16-le"), "is UTF-16; convert it to UTF-8"),
        (CONTENT.decode().encode("utf-32"), "is UTF-32; convert it to UTF-8"),
        (bytes(100_000), "is not a text file: it consists largely of NUL bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip writes the time, so the content is no stable id
)
@pytest.mark.parametrize("name", ["l.csv", "l.jsonl", "l.txt"])
def test_files_of_other_kinds_are_named(tmp_path: pathlib.Path, content: bytes, message: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ListError, match=rf"{name}: {message}"):
        read_list(tmp_path / name)


def test_parquet_of_another_kind_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "l.parquet").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(ListError, match="is compressed with gzip; Parquet is read only decompressed"):
        read_list(tmp_path / "l.parquet")
    (tmp_path / "l.parquet").write_bytes(archive())
    with pytest.raises(ListError, match="is a ZIP archive"):
        read_list(tmp_path / "l.parquet")
    (tmp_path / "l.parquet").write_bytes(CONTENT)
    with pytest.raises(ListError, match="cannot be read: Parquet magic bytes not found"):
        read_list(tmp_path / "l.parquet")


def test_devices_pipes_and_sockets_are_never_opened(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.csv"))
    (tmp_path / "link.csv").symlink_to("/dev/zero")
    (tmp_path / "link2.csv").symlink_to(tmp_path / "pipe.csv")
    of_the_kernel = ("/dev/zero", "/dev/urandom", "/dev/null", "/proc/kmsg", "/proc/self/environ")
    for file in (*sorted(tmp_path.iterdir()), *of_the_kernel):
        with pytest.raises(ListError, match=f"{file}: is not a regular file but a device, a pipe or a socket"):
            files_of(Source(name="mine", files=(str(file),), format="csv"))
    with pytest.raises(ListError, match="is not a regular file"):
        files_of(Source(name="mine", files=(f"{tmp_path}/*.csv",)))


def test_links_to_regular_files_are_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.csv").write_bytes(CONTENT)
    (tmp_path / "b.csv").symlink_to(tmp_path / "a.csv")
    assert read_list(tmp_path / "b.csv").rows == ROWS
    (tmp_path / "d.csv").symlink_to(tmp_path / "d.csv")
    with pytest.raises(ListError, match=r"d\.csv: cannot be read: .*symbolic links"):
        read_list(tmp_path / "d.csv")
    (tmp_path / "c.csv").symlink_to(tmp_path / "missing.csv")
    with pytest.raises(ListError, match=r"c\.csv: there is no such file"):
        read_list(tmp_path / "c.csv")


@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.jsonl", "l.txt"])
@pytest.mark.parametrize("filler", [b"x", b"\n", b" \n"])
def test_a_file_without_rows_ends_after_a_bounded_part(
    tmp_path: pathlib.Path, name: str, filler: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_lines, "MAX_SKIPPED_CHARACTERS", 2 << 20)
    content = b"url,caption\n" + filler * (4 << 20)
    (tmp_path / name).write_bytes(gzip.compress(content, 1))
    with pytest.raises(ListError, match=r"has more than 2 MiB"):
        read_list(tmp_path / name, text=None)


def test_a_file_whose_name_is_not_in_utf8_is_read_and_its_bad_rows_are_reported(tmp_path: pathlib.Path) -> None:
    file = os.fsdecode(bytes(tmp_path) + b"/\xff.csv")
    pathlib.Path(file).write_bytes(CONTENT + b",no url\n")
    result = read_list(tmp_path / "*.csv")
    assert result.rows == ROWS
    assert [row.file for row in result.bad] == [f"{tmp_path}/\ufffd.csv"]


def test_braces_stand_for_many_files_as_in_bash(tmp_path: pathlib.Path) -> None:
    names = ["a-08.csv", "a-09.csv", "a-10.csv", "b-x.csv", "b-y.csv"]
    for name in names:
        (tmp_path / name).write_bytes(CONTENT)
    for pattern, expected in (
        ("a-{08..10}.csv", names[:3]),
        ("a-{10..08}.csv", names[2::-1]),
        ("{a-09,b-x}.csv", ["a-09.csv", "b-x.csv"]),
        ("{b,a}-*.csv", [*names[3:], *names[:3]]),
    ):
        matches = [pathlib.Path(file).name for file in files_of(Source(name="x", files=(f"{tmp_path}/{pattern}",)))]
        assert matches == expected
    with pytest.raises(ListError, match=r"a-11\.csv: there is no such file"):
        files_of(Source(name="x", files=(f"{tmp_path}/a-{{08..11}}.csv",)))


def test_a_file_whose_name_has_braces_stands_for_itself(tmp_path: pathlib.Path) -> None:
    for name in ("{a,b}.csv", "a.csv", "b.csv"):
        (tmp_path / name).write_bytes(CONTENT)
    assert files_of(Source(name="x", files=(f"{tmp_path}/{{a,b}}.csv",))) == [f"{tmp_path}/{{a,b}}.csv"]


@pytest.mark.parametrize(
    "pattern", ["{0..99999999999}.csv", "{0..9999}{0..9999}.csv", "{0..999}{0..999}{a,b}.csv", "{a.csv"]
)
def test_braces_without_an_end_or_with_too_many_files_are_an_error(tmp_path: pathlib.Path, pattern: str) -> None:
    with pytest.raises(ListError, match=r"its braces (stand for more than 1,000,000 files|cannot be expanded)"):
        files_of(Source(name="x", files=(f"{tmp_path}/{pattern}",)))


def test_a_change_of_a_file_behind_braces_changes_the_stamp(tmp_path: pathlib.Path) -> None:
    own = Source(name="x", files=(f"{tmp_path}/{{a,b}}.csv",))
    assert stamp_of(own) is None
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_bytes(CONTENT)
    before = stamp_of(own)
    (tmp_path / "b.csv").write_bytes(CONTENT * 2)
    assert None not in (before, stamp_of(own)) and before != stamp_of(own)
