"""Folders of images: texts beside them or in a table, and links, devices and names that cannot do harm."""

import json
import logging
import os
import pathlib
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.existing_images import containers_of, digest_of, folders, iter_images, iter_rows, read_image
from lotlip_data.pipeline.url_lists.rows import ListError
from tests.pipeline.existing_images.read_containers import Result, read, source


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "images" / "sub" / "deep").mkdir(parents=True)
    return tmp_path / "images"


def fill(folder: pathlib.Path, **files: object) -> None:
    """Write files; `__` in a name is a slash, and the last `_` is the dot."""
    for name, content in files.items():
        path = folder / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.write_bytes(content if isinstance(content, bytes) else str(content).encode())


def read_folder(folder: pathlib.Path, samples_per_shard: int = 1000, **settings: object) -> Result:
    return read(source(folder, format="image-folder", **settings), samples_per_shard)


def test_images_have_the_texts_beside_them(folder: pathlib.Path) -> None:
    fields = json.dumps({"caption": ["u", "v"], "url": "http://a.example/b", "n": 2})
    fill(folder, a_jpg=b"A", a_txt="text a", sub__b_PNG=b"B", sub__b_json=fields, sub__deep__c_webp=b"C", d_tar=b"D")
    result = read_folder(folder, text=["txt", "json.caption"], url="json.url", filter='col("json.n") > 1')
    assert result.images == {"a.jpg": b"A", "sub/b.PNG": b"B", "sub/deep/c.webp": b"C"}
    assert result.texts == {"a.jpg": ("text a",), "sub/b.PNG": ("u", "v"), "sub/deep/c.webp": ("",)}
    assert [(row.url, row.values["json.n"]) for row in result.rows] == [
        (None, None),
        ("http://a.example/b", 2),
        (None, None),
    ]
    assert read_folder(folder, image="webp").images == {"sub/deep/c.webp": b"C"}


def test_an_extension_can_be_in_upper_case_as_in_a_tar(folder: pathlib.Path) -> None:
    fill(folder, a_JPG=b"A", a_TXT="text a", b_jpg=b"B", b_JSON='{"caption": "b"}', c_JPG=b"C", c_txt="c", c_TXT="no")
    result = read_folder(folder, text=["txt", "json.caption"])
    assert result.texts == {"a.JPG": ("text a",), "b.jpg": ("b",), "c.JPG": ("c",)}


def test_a_dot_in_a_name_is_a_part_of_it_and_hidden_files_are_skipped(folder: pathlib.Path) -> None:
    (folder / ".cache").mkdir()
    for name in ("photo.v2.jpg", "._photo.jpg", ".cache/x.jpg"):
        (folder / name).write_bytes(b"x")
    (folder / "photo.v2.txt").write_text("second")
    assert read_folder(folder).texts == {"photo.v2.jpg": ("second",)}


def test_a_bad_text_costs_its_own_image(folder: pathlib.Path) -> None:
    fill(
        folder,
        a_jpg=b"A",
        a_txt=b"caf\xe9",
        b_jpg=b"B",
        b_json="{",
        c_jpg=b"C",
        c_txt=b"x" * ((1 << 20) + 1),
        d_jpg=b"D",
    )
    (folder / "e.jpg").write_bytes(b"E")
    (folder / "e.txt").mkdir()
    result = read_folder(folder, text=["txt", "json.caption"])
    assert result.images == {"d.jpg": b"D"}
    assert result.reasons == {
        "a.jpg": "text not in UTF-8",
        "b.jpg": "not a JSON object",
        "c.jpg": "text too long",
        "e.jpg": "not a plain file",
    }


TABLE = [
    ("a.jpg", "one", 1),
    ("./sub\\b.jpg", "two", 2),
    ("a.jpg", "three", 3),
    ("none.jpg", "four", 4),
    ("", "five", 5),
]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_of_any_list_format_gives_the_texts(folder: pathlib.Path, form: str) -> None:
    fill(folder, a_jpg=b"A", sub__b_jpg=b"B", c_jpg=b"C", a_txt="beside")
    table = folder.parent / f"texts.{form}"
    if form == "parquet":
        names, texts, numbers = (list(column) for column in zip(*TABLE, strict=True))
        pq.write_table(pa.table({"image": names, "caption": texts, "n": numbers}), table)
    elif form == "jsonl":
        table.write_text("\n".join(json.dumps(dict(zip(("image", "caption", "n"), row, strict=True))) for row in TABLE))
    else:
        rows = [("image", "caption", "n"), *TABLE]
        table.write_text("\n".join(("," if form == "csv" else "\t").join(map(str, row)) for row in rows))
    result = read_folder(folder, table=str(table), file_name="image", filter="n > 0")
    assert result.texts == {"a.jpg": ("one", "three"), "c.jpg": ("",), "sub/b.jpg": ("two",)}
    assert [int(row.values["n"] or 0) for row in result.rows] == [1, 0, 2]
    assert result.reasons == {"none.jpg": "no such file"}
    assert [(row.row, row.reason) for row in result.bad_rows] == [(5, "no file name")]


def test_a_table_can_have_paths_with_the_folder_in_them(folder: pathlib.Path) -> None:
    fill(folder, a_jpg=b"A", sub__b_jpg=b"B")
    table = folder.parent / "texts.csv"
    names = ("a.jpg", "sub/b.jpg", "../images/a.jpg", "sub//b.jpg", "./sub/./b.jpg")
    table.write_text("file_name,caption\n" + "".join(f"{folder}/{name},{row}\n" for row, name in enumerate(names)))
    result = read_folder(folder, table=str(table))
    assert result.texts == {"a.jpg": ("0",), "sub/b.jpg": ("1", "3", "4")}
    assert list(result.reasons.values()) == ["unsafe name"]


def test_faulty_cells_of_a_table_cost_their_own_image(folder: pathlib.Path) -> None:
    fill(folder, a_jpg=b"A", b_jpg=b"B", c_jpg=b"C", d_jpg=b"D")
    table = folder.parent / "texts.jsonl"
    rows = [{"file_name": "b.jpg", "caption": {"x": 1}}, {"file_name": "c.jpg", "caption": [1.5, None]}, "garbage"]
    lines = [b'{"file_name": "a.jpg", "caption": "caf\xe9"}', *(json.dumps(row).encode() for row in rows)]
    table.write_bytes(b"\n".join(lines))
    result = read_folder(folder, table=str(table))
    assert result.texts == {"b.jpg": ("",), "c.jpg": ("1.5",), "d.jpg": ("",)}
    assert [row.defect for row in result.rows] == ["an object", None, None]
    assert result.reasons == {"a.jpg": "text not in UTF-8"}
    assert [row.reason for row in result.bad_rows] == ["not a JSON object"]


def test_a_table_cannot_name_files_elsewhere(folder: pathlib.Path) -> None:
    secret = folder.parent / "secret.jpg"
    secret.write_bytes(b"secret")
    fill(folder, a_jpg=b"A")
    names = [
        "../secret.jpg",
        str(secret),
        "sub/../../secret.jpg",
        "/etc/passwd",
        "http://a.example/1.jpg",
        "file:///etc/passwd",
    ]
    table = folder.parent / "texts.csv"
    table.write_text("\n".join(["file_name,caption", *(f"{name},x" for name in names)]))
    result = read_folder(folder, table=str(table))
    assert result.images == {"a.jpg": b"A"}
    assert set(result.reasons) == set(names)
    assert set(result.reasons.values()) == {"unsafe name", "no such file"}


def test_links_devices_and_endless_files_cost_their_own_row(
    folder: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "x.jpg").write_bytes(b"outside")
    fill(folder, a_jpg=b"A")
    links = {"inside.jpg": "a.jpg", "out.jpg": outside / "x.jpg", "self.jpg": "self.jpg", "dangling.jpg": "nothing"}
    links |= {
        "zero.jpg": "/dev/zero",
        "proc.jpg": "/proc/self/mem",
        "out": outside,
        "sub/loop": "..",
        "a.txt": outside / "x.jpg",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.jpg"))
        with caplog.at_level(logging.WARNING):
            result = read_folder(folder)
            followed = read_folder(folder, follow_links=True)
    assert result.images == {"inside.jpg": b"A"}
    out = "a link out of the folder"
    assert result.reasons == {
        **dict.fromkeys(("a.jpg", "out.jpg", "zero.jpg", "proc.jpg"), out),
        **dict.fromkeys(("self.jpg", "dangling.jpg"), "no such file"),
        **dict.fromkeys(("pipe.jpg", "socket.jpg"), "not a plain file"),
    }
    (warning,) = {record.getMessage() for record in caplog.records}
    assert warning == f"mine: {folder}/out: leads out of the folder; set `follow_links: true` to read it"
    assert followed.images == {"inside.jpg": b"A", "a.jpg": b"A", "out.jpg": b"outside", "out/x.jpg": b"outside"}
    assert {followed.reasons[name] for name in ("zero.jpg", "proc.jpg", "pipe.jpg")} == {"not a plain file"}


def test_links_in_a_circle_end_when_links_are_followed(folder: pathlib.Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "x.jpg").write_bytes(b"x")
    (outside / "back").symlink_to(folder)
    (outside / "again").symlink_to(outside)
    (folder / "one").symlink_to(outside)
    (folder / "two").symlink_to(outside)
    assert read_folder(folder, follow_links=True).images == {"one/x.jpg": b"x"}


def test_names_that_are_not_in_utf8_or_unsafe_are_rejected(folder: pathlib.Path) -> None:
    for name in (b"caf\xe9.jpg", b"new\nline.jpg", b"ok.jpg"):
        (pathlib.Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(b"x")
    result = read_folder(folder)
    assert (list(result.images), result.reasons) == (["ok.jpg"], {"new\nline.jpg": "unsafe name"})
    assert [(row.reason, row.content) for row in result.bad_rows] == [("unsafe name", "caf\ufffd.jpg")]


def test_a_large_file_is_not_read(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_IMAGE_BYTES", 1000)
    fill(folder, a_jpg=bytes(1000), b_jpg=bytes(1001))
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    result = read_folder(folder)
    assert (list(result.images), result.reasons) == (["a.jpg"], {"b.jpg": "too large", "sparse.jpg": "too large"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_this_user_may_not_read_costs_its_own_row(folder: pathlib.Path) -> None:
    fill(folder, a_jpg=b"A", b_jpg=b"B")
    (folder / "b.jpg").chmod(0)
    assert read_folder(folder).reasons == {"b.jpg": "not readable"}


def test_files_are_spread_over_containers_by_the_seed_and_not_by_folder(folder: pathlib.Path) -> None:
    for number in range(60):
        (folder / ("sub" if number < 30 else "sub/deep") / f"{number}.jpg").write_bytes(b"x")
    own = source(folder, format="image-folder")

    def names(seed: int) -> list[list[str]]:
        return [[file.name for file in container.files] for container in containers_of(own, 20, seed)]

    assert [len(part) for part in names(0)] == [20, 20, 20]
    assert all(len({name.rpartition("/")[0] for name in part}) == 2 for part in names(0))
    assert names(0) == names(0) and names(0) != names(1)
    assert all(part == sorted(part) for part in names(0))


def test_a_changed_or_missing_file_is_noticed(folder: pathlib.Path) -> None:
    fill(folder, a_jpg=b"A", b_jpg=b"B", b_txt="text")
    (container,) = containers_of(source(folder, format="image-folder"), 10)
    recorded = digest_of(container)
    (folder / "b.txt").write_text("another text")
    assert len(list(iter_images(container, recorded=recorded))) == 2
    for change in (lambda: (folder / "b.jpg").write_bytes(b"C"), (folder / "b.jpg").unlink):
        change()
        with pytest.raises(
            UserError, match=rf"^{folder} \(2 files from a\.jpg on\): cannot be read \(.*\)\. Restore it\.$"
        ):
            list(iter_images(container, "Restore it.", recorded=recorded))


def test_only_the_images_are_read_where_only_images_are_needed(folder: pathlib.Path) -> None:
    fill(folder, a_jpg=b"A", a_txt=b"caf\xe9")
    (container,) = containers_of(source(folder, format="image-folder"), 10)
    assert [image.image for image in iter_images(container)] == [b"A"]
    assert read_image(container, "a.jpg") == b"A"
    with pytest.raises(KeyError):
        read_image(container, "../a.jpg")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("none", "none: there is no such folder"),
        ("a.jpg", r"a\.jpg: is not a folder"),
        ("*", "stands for files; name the folder, whose subfolders are read too"),
        ("http://127.0.0.1:1/x", "a web server does not list its files"),
    ],
)
def test_what_is_no_folder_is_an_error(folder: pathlib.Path, files: str, message: str) -> None:
    fill(folder, a_jpg=b"A")
    with pytest.raises(ListError, match=message):
        list(containers_of(source(files if "://" in files else folder / files, format="image-folder"), 10))


def test_a_table_belongs_to_one_folder(folder: pathlib.Path) -> None:
    own = source(f"{folder}/{{sub,sub/deep}}", format="image-folder", table=f"{folder}/t.csv")
    with pytest.raises(ListError, match="mine: has a `table` and 2 folders; make a source of each folder"):
        list(containers_of(own, 10))


def test_an_empty_folder_has_no_containers(folder: pathlib.Path) -> None:
    assert list(containers_of(source(folder, format="image-folder"), 10)) == []


def test_rows_without_images_read_no_image(folder: pathlib.Path) -> None:
    fill(folder, a_jpg=b"A", a_txt="text")
    own = source(folder, format="image-folder")
    (container,) = containers_of(own, 10)
    (folder / "a.jpg").unlink()
    (row,) = iter_rows(container, own, images=False)
    assert row.texts == ("text",)  # type: ignore[union-attr]
