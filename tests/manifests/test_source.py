"""The settings of a source: what a list of URLs and images that exist have, and a message with the fix for the rest."""

from pathlib import Path
from typing import Any

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import dump, image_settings, load, parse
from lotlip_data.manifests.settings.source import Source


def source(files: object = "a.tar", **settings: Any) -> Source:
    return Source.parse({"name": "mine", "files": files} | settings)


@pytest.mark.parametrize(
    ("files", "form", "is_images"),
    [
        *(("a.tar", "webdataset", True), ("a.TAR", "webdataset", True), ("a.tar.gz", "webdataset", True)),
        *(("a.tgz", "webdataset", True), ("s3://b/{0..9}.tar", "webdataset", True), ("a.arrow", "image-table", True)),
        *(("http://h.example/a.tar?token=x.y", "webdataset", True), ("a.parquet", "parquet", False)),
        *(("a.csv.gz", "csv", False), ("a.txt", "txt", False)),
    ],
)
def test_the_ending_decides_the_format(files: str, form: str, is_images: bool) -> None:
    own = source(files)
    assert (own.format_of(files), own.is_images) == (form, is_images)


def test_the_defaults_of_columns_are_those_of_the_format() -> None:
    assert (source("a.csv").url, source("a.csv").text_columns) == ("url", ("caption",))
    assert (source("a.tar").url, source("a.tar").text_columns) == (None, ("txt",))
    table = source("a.parquet", format="image-table")
    assert (table.url, table.text_columns) == (None, ("caption",))
    assert source("images", format="image-folder").text_columns == ("txt",)
    assert source("images", format="image-folder", table="t.csv").text_columns == ("caption",)
    assert source(text=["txt", "json.caption"], url="json.url").needed == ["json.url", "txt", "json.caption"]
    assert source(text=None).text_columns == ()


def test_a_published_source_can_be_held_as_images() -> None:
    own = Source.parse({"use": "cc3m", "files": "cc3m/*.tar"})
    assert (own.name, own.format_of(own.files[0]), own.url, own.text_columns) == ("cc3m", "webdataset", None, ("txt",))
    assert own.homepage and own.columns is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"files": ["a.tar", "b.csv"]}, "`files` has files of the formats csv and webdataset; make a source of each"),
        ({"files": "folder"}, "set `format` to csv, tsv, jsonl, parquet or txt for a list of URLs, or to webdataset, "),
        ({"files": "a.csv", "url": None}, "`url`: a list of URLs needs the column of the URLs"),
        ({"files": "a.csv", "text": ["a", "b"]}, "`text`: a list of URLs has one column of texts"),
        (
            {"files": "a.csv", "images": "copy"},
            "`images` is a setting of images that exist; remove it, or set `format`",
        ),
        ({"files": "a.csv", "table": "b.csv"}, "`table` is a setting of images that exist"),
        ({"files": "a.parquet", "image": "image"}, "`image` is a setting of images that exist"),
        ({"hash": {"json.sha256": "sha256"}}, "`hash` is a setting of lists of URLs only; remove it"),
        ({"key": "id"}, "`key` is a setting of the format image-table only; remove it"),
        ({"table": "a.csv"}, "`table` is a setting of the format image-folder only; remove it"),
        ({"follow_links": True}, "`follow_links` is a setting of the format image-folder only; remove it"),
        ({"file_name": "x"}, "`file_name` is a setting of the format image-folder only; remove it"),
        ({"columns": ["txt"]}, "`columns` is a setting of lists of URLs and of `table` only; remove it"),
        ({"delimiter": ","}, "`delimiter` is a setting of CSV and TSV files only"),
        ({"images": "move"}, "`images`: "),
        ({"image": []}, "`image`: "),
        ({"text": []}, "`text`"),
        ({"format": "image-table", "image": ["a", "b"]}, "`image`: one column of images is read of a table"),
        ({"format": "image-folder", "table": "t.xls"}, "`table`: the ending of 't.xls' is not .csv, .tsv, .jsonl or"),
        ({"format": "image-folder", "table": "t.txt"}, "`table`: the ending of 't.txt' is not .csv, .tsv, .jsonl or"),
        ({"format": "image-folder", "table": "t.tsv", "columns": ["a"]}, "`columns` lacks 'file_name' and 'caption'"),
        ({"format": "image-folder", "table": "t.jsonl", "delimiter": ","}, "`delimiter` is a setting of CSV and TSV"),
        ({"filter": "json.size > 3"}, "is not possible in a filter"),
    ],
)
def test_a_setting_of_another_format_is_an_error_with_the_fix(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        source(**{"files": "a.tar"} | settings)
    assert message in str(error.value)


MANIFEST = """
name: my-images
sources:
  - name: tars
    files: data/{00000..00099}.tar
    text: [txt, json.caption]
    images: copy
  - name: table
    format: image-table
    files: [t.parquet]
    image: jpg
    key: id
  - name: folder
    format: image-folder
    files: images
    table: texts.tsv
    columns: [file_name, caption]
    delimiter: "\\t"
    follow_links: true
  - name: list
    files: l.csv
"""


def test_a_manifest_with_images_that_exist_reads_back_equal_with_absolute_paths(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MANIFEST)
    manifest = load(str(tmp_path / "m.yaml"))
    assert parse(dump(manifest), "x") == manifest
    tars, table, folder, urls = manifest.sources
    assert tars.files == (f"{tmp_path}/data/{{00000..00099}}.tar",)
    assert (folder.files, folder.table) == ((f"{tmp_path}/images",), f"{tmp_path}/texts.tsv")
    assert (table.image, table.key, tars.images, table.images) == (("jpg",), "id", "copy", "reference")
    assert [each.is_images for each in manifest.sources] == [True, True, True, False]
    assert folder.table_list.format_of(str(folder.table)) == "tsv"
    assert "images" in image_settings(manifest)["sources"][0]
    stored = urls.model_dump()
    assert not {"image", "images", "key", "table", "file_name", "follow_links"} & set(stored), "as before"
