"""Parquet lists are read in bounded memory, whatever their cells expand to, and a long cell costs its own row."""

import contextlib
import pathlib
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.pipeline.url_lists import parquet_rows
from lotlip_data.pipeline.url_lists.parquet_pages import column_chunks, pages
from lotlip_data.pipeline.url_lists.parquet_rows import TOO_LARGE
from lotlip_data.pipeline.url_lists.rows import MAX_LINE_CHARACTERS, ListError
from tests.pipeline.url_lists.read_lists import read_list

LONG = "x" * (MAX_LINE_CHARACTERS + 1)


def write(path: pathlib.Path, captions: object, **options: object) -> pathlib.Path:
    table = pa.table({"url": [f"http://a.example/{index}" for index in range(len(captions))], "caption": captions})  # type: ignore[arg-type]
    pq.write_table(table, path, **({"compression": "zstd"} | options))
    return path


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_cell_above_the_limit_costs_its_own_row(tmp_path: pathlib.Path, use_dictionary: bool) -> None:
    result = read_list(write(tmp_path / "l.parquet", ["a", LONG, "c"], use_dictionary=use_dictionary))
    assert [text for _, text in result.rows] == ["a", "c"]
    assert result.reasons == [(2, "cell too long")]
    result = read_list(write(tmp_path / "l.parquet", [["a"], [LONG[:-9], "y" * 20], ["c", "d"]]))
    assert ([texts for _, texts in result.texts], result.reasons) == ([["a"], ["c", "d"]], [(2, "cell too long")])


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "brotli", "lz4", "none"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_page_that_is_too_large_costs_its_row_group_and_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, compression: str, version: str
) -> None:
    monkeypatch.setattr(parquet_rows, "MAX_PAGE_BYTES", 1 << 20)
    options = {"row_group_size": 2, "compression": compression, "data_page_version": version}
    result = read_list(write(tmp_path / "l.parquet", ["a", "b", "c", LONG, "e", "f", "g"], **options))
    assert [text for _, text in result.rows] == ["a", "b", "e", "f", "g"]
    assert result.reasons == [(3, TOO_LARGE), (4, TOO_LARGE)]
    (remark,) = result.remarks
    assert "l.parquet: row group 1 is left out: the column 'caption' has a page of 1 MiB with" in remark


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows that are read at once, where 1 MiB may be."""
    monkeypatch.setattr(parquet_rows, "MAX_PAGE_BYTES", 1 << 20)
    batch_sizes = list[int]()
    to_chunks = parquet_rows._chunks

    def record(batch: pa.RecordBatch, *arguments: object) -> object:
        batch_sizes.append(batch.num_rows)
        return to_chunks(batch, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(parquet_rows, "_chunks", record)
    return batch_sizes


def test_long_texts_that_rows_repeat_are_read_in_small_batches(tmp_path: pathlib.Path, batch_sizes: list[int]) -> None:
    words = pa.array(["x" * 100_000, "y"])
    captions = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 50, pa.int32()), words)
    result = read_list(write(tmp_path / "l.parquet", captions.cast(pa.string())))
    assert [len(text) for _, text in result.rows] == [100_000, 1] * 50
    assert max(batch_sizes) == 10


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("listed", [False, True])
def test_texts_that_are_written_as_prefixes_of_others_are_read_in_small_batches(
    tmp_path: pathlib.Path, batch_sizes: list[int], version: str, listed: bool
) -> None:
    captions = [f"{'x' * 100_000}{index:03}" for index in range(100)]
    column = "caption.list.element" if listed else "caption"
    encoding = {"use_dictionary": False, "column_encoding": {column: "DELTA_BYTE_ARRAY"}, "compression": "none"}
    content = [[caption] for caption in captions] if listed else captions
    path = write(tmp_path / "l.parquet", content, data_page_version=version, **encoding)
    assert path.stat().st_size < 200_000
    assert [text for _, text in read_list(path).rows] == captions
    assert max(batch_sizes) <= 10


def test_missing_bytes_of_a_great_fixed_length_are_read_in_small_batches(
    tmp_path: pathlib.Path, batch_sizes: list[int]
) -> None:
    for kind in (pa.binary(100_000), pa.list_(pa.binary(100_000))):
        result = read_list(write(tmp_path / "l.parquet", pa.nulls(100, kind)))
        assert [text for _, text in result.rows] == [""] * 100
    assert max(batch_sizes) <= 10


def test_lists_that_repeat_a_long_text_are_left_out(tmp_path: pathlib.Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 5_000, pa.int32()), pa.array(["x" * 100_000]))
    captions = pa.ListArray.from_arrays(pa.array([0, 5_000], pa.int32()), words)
    result = read_list(write(tmp_path / "l.parquet", captions))
    assert (result.rows, result.reasons) == ([], [(1, TOO_LARGE)])


def test_footer_and_pages_are_read_as_pyarrow_describes_them(tmp_path: pathlib.Path) -> None:
    texts = [f"text {index:06d}" for index in range(50_000)]
    nested = [[text] for text in texts]
    for captions in (texts, nested):
        for options in ({}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"write_page_index": True}):
            more: dict[str, object] = {"data_page_size": 10_000, "write_page_checksum": True, "row_group_size": 20_000}
            path = write(tmp_path / "l.parquet", captions, **more, **options)
            metadata = pq.ParquetFile(path).metadata
            with open(path, "rb") as stream:
                groups = column_chunks(stream)
                assert len(groups) == metadata.num_row_groups == 3
                for number, chunks in enumerate(groups):
                    chunk, expected = chunks[1], metadata.row_group(number).column(1)
                    assert (chunk.path, chunk.values, chunk.holds_bytes, chunk.codec) == (
                        *(expected.path_in_schema, expected.num_values, True, expected.compression.lower()),
                    )
                    assert chunk.uncompressed_bytes == expected.total_uncompressed_size
                    listed = list(pages(stream, chunk))
                    assert sum(page.values for page in listed if not page.is_dictionary) == expected.num_values
                    assert sum(page.is_dictionary for page in listed) == expected.has_dictionary_page
                    assert sum(page.uncompressed_bytes for page in listed) <= expected.total_uncompressed_size
                    assert sum(page.compressed_bytes for page in listed) <= expected.total_compressed_size


def test_a_damaged_file_is_read_or_refused_and_never_ends_the_process(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "l.parquet", [f"text {index}" for index in range(20)])
    content = path.read_bytes()
    rng = random.Random(5)
    for _ in range(300):
        data = bytearray(content)
        data[rng.randrange(4, len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with contextlib.suppress(ListError):
            read_list(path)


def test_a_column_that_stands_twice_is_an_error_that_names_it(tmp_path: pathlib.Path) -> None:
    arrays = [pa.array(["http://a.example/1"]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(arrays, ["url", "caption", "caption"]), tmp_path / "l.parquet")
    with pytest.raises(ListError, match=r"l\.parquet: has the column 'caption' twice, as columns 2 and 3"):
        read_list(tmp_path / "l.parquet")
    assert read_list(tmp_path / "l.parquet", text=None).texts == [("http://a.example/1", [""])]


@pytest.mark.slow
def test_a_few_kilobytes_that_hold_a_gigabyte_do_not_need_memory_for_it(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "l.parquet", pa.array(["x" * 1_200_000_000], pa.large_string()))
    assert path.stat().st_size < 100_000
    code = (
        "import resource, sys\n"
        "from tests.pipeline.url_lists.read_lists import read_list\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert [reason for _, reason in read_list(sys.argv[1]).reasons]\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200_000, "KiB"
