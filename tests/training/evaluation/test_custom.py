"""Sets of one's own: every form gives the same images and texts, and errors name the file and the row."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation.tasks.custom import custom_task
from lotlip_data.training.evaluation.tasks.reading import is_partial, read_task
from tests.training.evaluation.published_files import write_image

ROWS = [("a.jpg", 'A "red" boat, at sea.\nIt is small.'), ("deep er/b.png", "Ein Hünd."), ("a.jpg", "A second text.")]


def write_images(folder):
    (folder / "deep er").mkdir(parents=True)
    for index, name in enumerate(("a.jpg", "deep er/b.png")):
        write_image(folder / name, index)


def write_table(path, header=("image", "text"), rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(dict(zip(header, zip(*rows, strict=True), strict=True))), path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in (header, *rows)]
        path.write_text("".join(delimiter.join(row) + "\r\n" for row in quoted), encoding="utf-8")


def read(path, name="", **options):
    task, folder = custom_task(str(path), name)
    return read_task(task, folder, **options)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("is_named", [True, False])
def test_every_table_gives_the_same_set(tmp_path, ending, is_named):
    write_images(tmp_path)
    write_table(tmp_path / f"metadata.{ending}")
    own = read(tmp_path / f"metadata.{ending}" if is_named else tmp_path)
    assert own.paths == (f"{tmp_path}/a.jpg", f"{tmp_path}/deep er/b.png")
    assert own.texts == (ROWS[0][1], ROWS[2][1], ROWS[1][1]) and own.image_of_text == (0, 0, 1)
    assert own.name == "custom" and own.task.kind == "long" and not is_partial(own)


@pytest.mark.parametrize("header", [("file_name", "caption"), ("filepath", "title"), ("path", "text")])
def test_columns_of_other_tools_are_known(tmp_path, header):
    write_images(tmp_path)
    write_table(tmp_path / "t.csv", header)
    assert len(read(tmp_path / "t.csv").texts) == 3


def test_a_table_may_name_images_elsewhere_by_absolute_paths(tmp_path):
    write_images(tmp_path / "images")
    write_table(tmp_path / "tables/t.csv", rows=[(f"{tmp_path}/images/{name}", text) for name, text in ROWS])
    assert read(tmp_path / "tables/t.csv").paths == (f"{tmp_path}/images/a.jpg", f"{tmp_path}/images/deep er/b.png")


def test_a_folder_of_images_with_text_files(tmp_path):
    write_images(tmp_path)
    for name, text in (("a", "A dog\n"), ("deep er/b", "﻿A cat")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    own = read(tmp_path, "pets")
    assert own.texts == ("A dog", "A cat") and own.name == "custom-pets" and own.task.kind == "short"


def test_what_is_missing_makes_the_set_partial_and_needs_consent(tmp_path):
    write_images(tmp_path)
    (tmp_path / "a.txt").write_text("A dog")
    (tmp_path / "gone.txt").write_text("A horse")
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert "1 text without an image" in str(error.value) and "1 image without a text" in str(error.value)
    assert "--allow-partial" in str(error.value)
    own = read(tmp_path, allow_partial=True)
    assert own.texts == ("A dog",) and is_partial(own) and len(own.missing) == len(own.textless) == 1


def test_a_null_text_is_a_missing_text(tmp_path):
    write_images(tmp_path)
    write_table(tmp_path / "t.parquet", rows=[("a.jpg", None), ("deep er/b.png", "A cat")])
    own = read(tmp_path / "t.parquet", allow_partial=True)
    assert own.textless == (f"{tmp_path}/a.jpg",) and own.texts == ("A cat",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,text\na.jpg,one\nb.jpg,two,three\n", "t.csv, line 3 has 3 fields instead of 2"),
        ('image,text\na.jpg,"one\n', "t.csv, line 2 is malformed"),
        ("picture,text\na.jpg,one\n", "has no column of images: its columns are picture, text"),
        ("image,words\na.jpg,one\n", "has no column of texts"),
        ("image,text,text\na.jpg,one,two\n", "has the column `text` twice"),
        ("image,text\n,one\n", "t.csv, line 2 names no image"),
        ("image,text\n", "t.csv has no rows"),
        ("", "has no column of images"),
    ],
)
def test_a_malformed_table_is_an_error_that_names_the_line(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=r"custom: .*t\.csv") as error:
        read(tmp_path / "t.csv")
    assert message in str(error.value)


def test_a_folder_without_a_set_is_an_error_that_says_what_a_set_is(tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.csv").write_text("x")
    (tmp_path / "two.csv").write_text("x")
    for folder, message in (
        ("images", "has neither text files nor a table"),
        ("nothing", "nothing: there is no such folder"),
        ("empty", "empty: has no images"),
        ("", "has 2 tables (one.csv, two.csv)"),
        ("three.csv", "there is no such file"),
    ):
        with pytest.raises(UserError) as error:
            read(tmp_path / folder)
        assert message in str(error.value)


@pytest.mark.parametrize("name", ["../x", "A", "a b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="a name has lowercase letters"):
        custom_task(str(tmp_path), name)
