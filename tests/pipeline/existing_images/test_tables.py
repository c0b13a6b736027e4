"""Tables with image bytes: files of datasets and pandas are read in bounded memory, and a bad cell costs its row."""

import datetime
import decimal
import io
import json
import pathlib
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.existing_images import (
    containers_of,
    digest_of,
    iter_images,
    iter_rows,
    read_image,
    table_files,
)
from lotlip_data.pipeline.url_lists.rows import ListError
from tests.pipeline.existing_images.read_containers import read, source

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CELLS = [{"bytes": b"A", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None, {"bytes": b"D", "path": None}]


def picture(seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 9, 3), np.uint8))


@pytest.fixture(scope="module")
def dataset() -> datasets.Dataset:
    content = {"image": [picture(seed) for seed in range(7)], "caption": [f"text {seed}" for seed in range(7)]}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.Dataset.from_dict(content, features)


def check_pictures(images: dict[str, bytes | None], names: list[str]) -> None:
    assert list(images) == names
    for seed, image in enumerate(images.values()):
        assert image is not None
        assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(image))), np.asarray(picture(seed)))


def test_a_parquet_file_of_datasets_is_read(tmp_path: pathlib.Path, dataset: datasets.Dataset) -> None:
    dataset.to_parquet(tmp_path / "d.parquet", batch_size=3)
    result = read(source(tmp_path / "*.parquet", format="image-table"), samples_per_shard=4)
    check_pictures(result.images, [str(row) for row in range(7)])
    assert result.texts["6"] == ("text 6",)
    assert [container.rows for container in result.containers] == [3, 4], "whole row groups"


def test_a_folder_that_datasets_has_saved_is_read(tmp_path: pathlib.Path, dataset: datasets.Dataset) -> None:
    dataset.save_to_disk(str(tmp_path / "one"), num_shards=2)
    result = read(source(tmp_path / "one", format="image-table"), samples_per_shard=3)
    assert [(pathlib.Path(each.url).name, each.first, each.rows) for each in result.containers] == [
        ("data-00000-of-00002.arrow", 0, 3),
        ("data-00000-of-00002.arrow", 3, 1),
        ("data-00001-of-00002.arrow", 0, 3),
    ]
    assert [row.texts for row in result.rows] == [(f"text {seed}",) for seed in range(7)]
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "train only"))
    assert len(read(source(tmp_path / "train only", format="image-table")).rows) == 7
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(
        ListError, match=r"both: has several splits \(train, test\); name the folder of one, such as .*/train"
    ):
        read(source(tmp_path / "both", format="image-table"))
    assert len(read(source(tmp_path / "both" / "test", format="image-table")).rows) == 7


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", "", None, "*", {"filename": "a/b"}])
def test_a_folder_of_datasets_cannot_point_elsewhere(tmp_path: pathlib.Path, name: object) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [name]}))
    with pytest.raises(ListError, match="which is no file in it"):
        read(source(tmp_path, format="image-table"))


def test_a_table_of_pandas_is_read(tmp_path: pathlib.Path) -> None:
    frame = pd.DataFrame({"jpg": [b"A", None, b"C"], "texts": [["x", "y"], [], None], "id": ["k1", "k2", "k3"]})
    frame.to_parquet(tmp_path / "p.parquet", engine="pyarrow")
    result = read(source(tmp_path / "p.parquet", format="image-table", image="jpg", text="texts", key="id"))
    assert result.images == {"k1": b"A", "k3": b"C"}
    assert result.texts == {"k1": ("x", "y"), "k3": ("",)}
    assert result.reasons == {"k2": "no image"}


def arrow_file(path: pathlib.Path, table: pa.Table, writer: object, rows: int | None = None) -> pathlib.Path:
    with pa.OSFile(str(path), "wb") as file, writer(file, table.schema) as stream:  # type: ignore[operator]
        stream.write_table(table, max_chunksize=rows)
    return path


KINDS = ("parquet", "stream", "file", "feather")


def table_file(folder: pathlib.Path, table: pa.Table, kind: str = "parquet", rows: int = 100) -> pathlib.Path:
    path = folder / "t.table"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=rows)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, path, chunksize=rows)
    else:
        arrow_file(path, table, pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file, rows)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_without_bytes_costs_its_own_row_in_every_format(tmp_path: pathlib.Path, kind: str) -> None:
    table = pa.table({"image": pa.array(CELLS, STRUCT), "caption": ["a", "b", "c", None], "n": [1, 2, 3, None]})
    result = read(source(table_file(tmp_path, table, kind, 3), format="image-table", filter="n > 0"))
    assert result.images == {"0": b"A", "3": b"D"}
    assert [(row.texts, row.values) for row in result.rows] == [(("a",), {"n": 1}), (("",), {"n": None})]
    assert [(row.name, row.reason, row.detail) for row in result.rejected] == [
        ("1", "no image", "the table has only its path, b.jpg: write the table again with the bytes of the images"),
        ("2", "no image", "the cell is empty"),
    ]


IMAGE_TYPES = [
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.binary(1),
    pa.dictionary(pa.int32(), pa.binary()),
    pa.struct([("bytes", pa.large_binary())]),
    pa.struct([("path", pa.string()), ("bytes", pa.binary()), ("width", pa.int32())]),
]


@pytest.mark.parametrize("kind", IMAGE_TYPES, ids=str)
def test_bytes_of_every_type_are_images(tmp_path: pathlib.Path, kind: pa.DataType) -> None:
    is_struct = pa.types.is_struct(kind)
    cells = [{"bytes": cell} if is_struct else cell for cell in (b"A", None, b"C")]
    for form in ("parquet", "stream"):
        if form == "parquet" and kind == pa.binary_view():
            continue
        table = pa.table({"image": pa.array(cells, kind)})
        result = read(source(table_file(tmp_path, table, form), format="image-table", text=None))
        assert (result.images, result.reasons) == ({"0": b"A", "2": b"C"}, {"1": "no image"})


@pytest.mark.parametrize(
    ("kind", "cell", "message"),
    [
        (
            pa.string(),
            "http://a.example/1.jpg",
            r"holds texts, not the bytes of images\. If they are URLs, .* `format: parquet`",
        ),
        (
            pa.list_(pa.binary()),
            [b"x"],
            r"is list<.*binary>, not the bytes of an image; name another column in `image`",
        ),
        (pa.int64(), 1, "is int64, not the bytes of an image"),
        (pa.struct([("path", pa.string())]), {"path": "x"}, "is struct<path: string>, without a field `bytes`"),
    ],
)
def test_a_column_without_bytes_is_an_error_before_anything_is_read(
    tmp_path: pathlib.Path, kind: pa.DataType, cell: object, message: str
) -> None:
    path = table_file(tmp_path, pa.table({"image": pa.array([cell], kind), "caption": ["x"]}))
    with pytest.raises(ListError, match=rf"t\.table: the column 'image' {message}"):
        list(containers_of(source(path, format="image-table"), 10))


def test_a_missing_column_is_named_with_the_columns_there_are(tmp_path: pathlib.Path) -> None:
    path = table_file(tmp_path, pa.table({"image": [b"x"], "text": ["x"]}))
    with pytest.raises(
        ListError, match=r"has no column 'caption'; its columns are 'image', 'text'\. Name other columns in"
    ):
        list(containers_of(source(path, format="image-table"), 10))


@pytest.mark.parametrize("column", ["text", "url", "key"])
def test_a_column_that_holds_no_texts_is_an_error(tmp_path: pathlib.Path, column: str) -> None:
    path = table_file(tmp_path, pa.table({"image": [b"x"], "caption": ["x"], "object": [{"a": 1}]}))
    with pytest.raises(ListError, match="the column 'object' is struct<a: int64>, not a text"):
        list(containers_of(source(path, format="image-table", **{column: "object"}), 10))


def test_a_filter_gets_values_of_every_type(tmp_path: pathlib.Path) -> None:
    row = {"d": datetime.date(2026, 1, 2), "n": decimal.Decimal("1.5"), "b": True, "x": b"y", "l": [1], "o": {"a": 1}}
    path = table_file(tmp_path, pa.Table.from_pylist([row | {"image": b"A"}]))
    (result,) = read(source(path, format="image-table", text=None, filter="d > n or b > x or l > o")).rows
    assert result.values == {"d": "2026-01-02", "n": "1.5", "b": True, "x": "y", "l": None, "o": None}


def test_keys_name_rows_and_faulty_keys_cost_their_rows(tmp_path: pathlib.Path) -> None:
    keys = ["a", None, "a", "../b", " c ", ""]
    path = table_file(tmp_path, pa.table({"image": [bytes([65 + row]) for row in range(6)], "id": keys}))
    result = read(source(path, format="image-table", text=None, key="id"))
    assert result.images == {"a": b"A", "c": b"E"}
    assert [(row.name, row.reason) for row in result.rejected] == [
        ("", "no key"),
        ("a", "duplicate key"),
        ("../b", "unsafe name"),
        ("", "no key"),
    ]


def test_texts_that_are_no_texts_cost_their_rows(tmp_path: pathlib.Path) -> None:
    garbled = pa.array([b"fine", b"caf\xe9", b"x" * ((1 << 20) + 1), b"ok"]).view(pa.string())
    for kind in KINDS[:3]:
        path = table_file(tmp_path, pa.table({"image": [b"A", b"B", b"C", b"D"], "caption": garbled}), kind)
        result = read(source(path, format="image-table"))
        assert result.texts == {"0": ("fine",), "3": ("ok",)}
        assert result.reasons == {"1": "text not in UTF-8", "2": "text too long"}


def test_a_page_that_is_too_large_costs_its_row_group(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "MAX_PAGE_BYTES", 1 << 20)
    images = [b"A", b"B", b"C" * (1 << 21), b"D", b"E"]
    path = table_file(tmp_path, pa.table({"image": images}), rows=2)
    own = source(path, format="image-table", text=None)
    rows = [row for container in containers_of(own, 2) for row in iter_rows(container, own)]
    assert [getattr(row, "reason", "") for row in rows] == ["", "", "too large", "too large", ""]
    assert "row group 1: the column 'image' has a page of 2 MiB" in rows[2].detail  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_table_is_one_error(tmp_path: pathlib.Path, kind: str) -> None:
    """Cut off anywhere, or with any byte changed: read, or an error that names the table, and never a crash."""
    table = pa.table({"image": pa.array(CELLS * 20, STRUCT), "caption": [f"text {row}" for row in range(80)]})
    path = table_file(tmp_path, table, kind, 30)
    own, whole = source(path, format="image-table"), path.read_bytes()
    containers = list(containers_of(own, 1000))
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"t\.table"):
            list(containers_of(own, 1000))
            [row for container in containers for row in iter_rows(container, own, remedy="Fetch it.")]


_FUZZ = """
import sys, random
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.existing_images import containers_of, iter_rows
from tests.pipeline.existing_images.read_containers import source
draw = random.Random(0)
for path in sys.argv[1:]:
    own, whole = source(path, format="image-table"), open(path, "rb").read()
    errors = 0
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        open(path, "wb").write(damaged)
        try:
            for container in containers_of(own, 1000):
                list(iter_rows(container, own))
        except UserError as error:
            errors += 1
            assert path in str(error), error
    print(errors)
"""


@pytest.mark.slow
def test_flipped_bits_in_a_table_never_end_the_process(tmp_path: pathlib.Path) -> None:
    table = pa.table({"image": pa.array(CELLS * 20, STRUCT), "caption": [f"text {row}" for row in range(80)]})
    for kind in KINDS:
        (tmp_path / kind).mkdir()
    paths = [str(table_file(tmp_path / kind, table, kind, 30)) for kind in KINDS]
    done = subprocess.run([sys.executable, "-c", _FUZZ, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(int(errors) > 3 for errors in done.stdout.split())


def test_rows_that_are_missing_now_are_an_error(tmp_path: pathlib.Path) -> None:
    own = source(table_file(tmp_path, pa.table({"image": [b"A"] * 10})), format="image-table", text=None)
    (container,) = containers_of(own, 100)
    table_file(tmp_path, pa.table({"image": [b"A"] * 8}))
    with pytest.raises(
        UserError, match=r"t\.table \(rows 0 to 9\): the table has only 8 of these rows\. Restore it\.$"
    ):
        list(iter_images(container, "Restore it."))
    pathlib.Path(container.url).unlink()
    with pytest.raises(UserError, match=r"t\.table \(rows 0 to 9\): is missing\. Restore it\.$"):
        list(iter_images(container, "Restore it."))


def test_the_digest_of_a_container_is_that_of_its_own_images(tmp_path: pathlib.Path) -> None:
    images = [bytes([65 + row]) for row in range(6)]
    own = source(table_file(tmp_path, pa.table({"image": images}), rows=3), format="image-table", text=None)
    first, second = containers_of(own, 3)
    recorded = digest_of(first), digest_of(second)
    assert recorded[0] != recorded[1]
    table_file(tmp_path, pa.table({"image": [*images[:5], b"X"]}), rows=3)
    assert [image.name for image in iter_images(first, recorded=recorded[0])] == ["0", "1", "2"]
    with pytest.raises(UserError, match="does not match its recorded sha256"):
        list(iter_images(second, recorded=recorded[1]))


def test_one_image_of_a_table_is_read_alone(tmp_path: pathlib.Path) -> None:
    own = source(
        table_file(tmp_path, pa.table({"image": [bytes([65 + row]) for row in range(9)]}), rows=2),
        text=None,
        format="image-table",
    )
    containers = list(containers_of(own, 4))
    assert [read_image(containers[1], str(row)) for row in (4, 7)] == [b"E", b"H"]
    with pytest.raises(KeyError):
        read_image(containers[0], "x")


_PEAK = """
import sys
from lotlip_data.pipeline.existing_images import containers_of, iter_rows
from tests.pipeline.existing_images.read_containers import source
from tests.pipeline.peak_memory import peak_memory_bytes
own = source(sys.argv[1], format="image-table")
(container,) = containers_of(own, 100_000)
rows = iter_rows(container, own)
next(rows)
before = peak_memory_bytes()
print(sum(1 for _ in rows), (peak_memory_bytes() - before) >> 20)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows_of_a_table(tmp_path: pathlib.Path) -> None:
    """300 MB of images in one row group."""
    path = tmp_path / "t.table"
    images = [np.random.default_rng(0).bytes(100_000)] * 3000
    table = pa.table({"image": images, "caption": ["x"] * 3000})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_batch_size=100)
    done = subprocess.run([sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True)
    rows, mib = map(int, done.stdout.split())
    assert rows == 2999
    assert mib < 150
