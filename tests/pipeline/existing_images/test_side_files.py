"""Columns are extensions of files beside an image, or keys in JSON files, also in each other and with dots."""

import pytest

from lotlip_data.pipeline.existing_images.rows import Problem
from lotlip_data.pipeline.existing_images.side_files import SideFiles, split_name


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        *(("1.jpg", ("1", "jpg")), ("a/b/1.JPG", ("a/b/1", "jpg")), ("a.b/1.seg.png", ("a.b/1", "seg.png"))),
        *(("./1.jpg", ("./1", "jpg")), ("1.", ("1", "")), ("a/.hidden.jpg", None), (".hidden", None), ("1", None)),
        *(("a.b/1", None), ("", None), ("a/", None), ("new\nline.jpg", ("new\nline", "jpg"))),
    ],
)
def test_names_are_split_as_webdataset_splits_them(name: str, parts: tuple[str, str] | None) -> None:
    assert split_name(name) == parts


def test_a_column_is_a_file_or_a_key_in_it() -> None:
    files = {
        "txt": b"\xef\xbb\xbfa text",
        "caption.txt": b"another",
        "json": b'{"a": 1, "b": {"c": ["x"], "d.e": true}, "b.f": "dotted", "g": null}',
        "meta.json": b'{"a": 2}',
    }
    columns = ["txt", "TXT", "caption.txt", "json.a", "json.b.c", "json.b.d.e", "json.b.f", "json.g", "json.h.i"]
    side_files = SideFiles([*columns, "meta.json.a", "cls"])
    assert side_files.extensions == {"txt", "caption.txt", "json", "meta.json", "cls"}
    values = [b"a text", b"a text", b"another", 1, ["x"], True, "dotted", None, None]
    assert side_files.cells(files) == dict(zip(columns, values, strict=True)) | {"meta.json.a": 2}
    assert SideFiles(["txt", "json.a"]).cells({}) == {"json.a": None}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 1}x', b"\xff{}", b"null", b"[" * 10_000, b"1" * 10_000])
def test_what_is_no_json_object_is_a_problem(content: bytes) -> None:
    problem = SideFiles(["json.a"]).cells({"json": content})
    assert isinstance(problem, Problem) and problem.detail == "the file json"
