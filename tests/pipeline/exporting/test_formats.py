"""Every format gives back the texts of each image as they are, to the readers that people use for it."""

import csv
import dataclasses
import hashlib
import io
import json
import tarfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import webdataset

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.pipeline.exporting.formats import DREAMLIP_TEXTS, FORMATS, RAW, URL
from lotlip_data.pipeline.exporting.rows import HAS_NUL, schema_of
from lotlip_data.pipeline.exporting.stage import describe
from lotlip_data.pipeline.exporting.writers import TarWriter
from lotlip_data.synthetic.caption_writers import raw_text
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.exporting.export_fixture import TRICKY, by_key, export_one, make
from tests.pipeline.run_fixture import FakeRun

MIB = 1 << 20
TEXTS = (*TRICKY, None)

Rows = list[dict[str, Any]]


def read_parquet(file: Path) -> Rows:
    return list(pq.read_table(file).to_pylist())


def read_json_lines(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def read_csv(file: Path) -> Rows:
    with file.open(newline="", encoding="utf-8") as stream:
        return [dict(row) for row in csv.DictReader(stream)]


def read_pandas(file: Path) -> Rows:
    return list(pandas.read_csv(file, dtype=str, keep_default_na=False).to_dict("records"))


def read_arrow_csv(file: Path) -> Rows:
    names = read_csv(file)[0]
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return list(pyarrow.csv.read_csv(file, parse_options=parse, convert_options=options).to_pylist())


def read_webdataset(file: Path) -> Rows:
    samples = list(webdataset.WebDataset(str(file), shardshuffle=False))
    for sample in samples:
        assert hashlib.sha256(sample["jpg"]).hexdigest() == json.loads(sample["json"])["sha256"]
        assert sample["txt"].decode() == json.loads(sample["json"])["raw"]
        assert sample["__key__"] == json.loads(sample["json"])["key"]
    return [json.loads(sample["json"]) for sample in samples]


READERS = {
    "parquet": (read_parquet,),
    "jsonl": (read_json_lines,),
    "csv": (read_csv, read_pandas, read_arrow_csv),
    "webdataset": (read_webdataset,),
}


@pytest.mark.parametrize("file_format", READERS)
def test_each_image_has_its_texts_flags_and_reasons(tmp_path: Path, file_format: str) -> None:
    fake = make(tmp_path / "run", TEXTS)
    images = {row["key"]: row for row in fake_run.fetched_rows(fake.run, 0)}
    _, file = export_one(fake, tmp_path / "out", file_format)
    for read in READERS[file_format]:
        rows = by_key(read(file))
        has_null = read not in (read_csv, read_pandas)
        assert list(rows) == sorted(rows) or file_format == "webdataset"
        assert rows.keys() == images.keys()
        for (key, image), text in zip(images.items(), TEXTS, strict=True):
            row, null = rows[key], None if has_null else ""
            assert row["llava"] == (text if text is not None else null)
            assert row["llava_reason"] == ("" if text is not None else "poison")
            assert (row["url"], row["uid"], row["sha256"]) == (image["url"], image["uid"], image["sha256"])
            assert (row["container"], row["member"]) == (null, null)
            assert row["raw"] == raw_text(fake.scenes[image["uid"]]) and row["source"] == "web"
            raws = row["raws"] if isinstance(row["raws"], list) else json.loads(row["raws"])
            assert raws == [row["raw"]]


@pytest.mark.parametrize("file_format", FORMATS)
def test_images_without_a_text_come_last_and_a_second_export_is_the_same_file(tmp_path: Path, file_format: str) -> None:
    fake = make(tmp_path / "run", [None, "a", None, "b"], captioners=("llava",))
    _, first = export_one(fake, tmp_path / "one", file_format)
    _, second = export_one(fake, tmp_path / "two", file_format)
    assert first.read_bytes() == second.read_bytes()
    reader = read_csv if file_format == "dreamlip" else READERS[file_format][0]
    column = "longLLA_captions" if file_format == "dreamlip" else "llava"
    assert [bool(row[column]) for row in reader(first)] == [True, True, False, False]
    if file_format == "webdataset":
        with tarfile.open(first) as tar:
            assert {(member.mtime, member.uid, member.mode) for member in tar} == {(0, 0, 0o644)}


@pytest.mark.parametrize("file_format", READERS)
def test_hugging_face_datasets_reads_every_format(
    tmp_path: Path, file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    texts = [None] * 6 + [f"text {number}" for number in range(6)]
    fake = make(tmp_path / "run", texts)
    _, file = export_one(fake, tmp_path / "out", file_format)
    builder = {"jsonl": "json"}.get(file_format, file_format)
    loaded = datasets.load_dataset(builder, data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    rows = [sample["json"] for sample in loaded] if file_format == "webdataset" else list(loaded)
    assert sorted(row["llava"] or "" for row in rows) == sorted(text or "" for text in texts)
    assert [row["llava_reason"] or "" for row in rows] == [""] * 6 + ["poison"] * 6


def test_the_images_of_a_shard_are_never_in_memory_together(tmp_path: Path) -> None:
    """48 images of 1 MiB each need less than 16 MiB of memory, including the 4 MiB chunks in which files are copied."""
    fake = fake_run.make(tmp_path / "run", shards=0, writers=())
    rows: list[dict[str, Any]] = []
    for number in range(48):
        row = fake_run.listed_row(f"{number:09d}", f"http://images.test/{3_000_000 + number}.jpg", ["a"], ["web"])
        rows.append(row | {"status": "success", "sha256": f"{number:064d}", "width": 8, "height": 8})
    fake_run.commit_images(fake.run, 0, rows, [(row, bytes([number]) * MIB) for number, row in enumerate(rows)])
    fake_run.claim_captioner(fake.run, "llava")
    captions = [fake_run.caption(row, "text" if number % 2 else None) for number, row in enumerate(rows)]
    fake_run.write_captions(fake.run, "llava", 0, captions)
    export_one(fake, tmp_path / "first", "webdataset")  # so that imports and caches are not measured
    tracemalloc.start()
    _, file = export_one(fake, tmp_path / "out", "webdataset")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.stat().st_size > 48 * MIB and peak < 16 * MIB


def test_flags_are_kept_and_an_outdated_text_is_left_out_with_its_reason(tmp_path: Path) -> None:
    fake = make(tmp_path / "run", ["flagged", "of other bytes"], captioners=("llava",))
    images = fake_run.fetched_rows(fake.run, 0)
    rows = [fake_run.caption(images[0], "flagged", ["repetition", "truncated"]), fake_run.caption(images[1], "old")]
    rows[1]["sha256"] = "0" * 64
    fake_run.write_captions(fake.run, "llava", 0, rows)
    _, file = export_one(fake, tmp_path / "out", "parquet")
    exported = [(row["llava"], row["llava_flags"], row["llava_reason"]) for row in read_parquet(file)]
    assert exported == [("flagged", "repetition truncated", ""), (None, "", "image_changed")]


def test_a_text_with_a_nul_character_is_left_out_of_csv_alone(tmp_path: Path) -> None:
    fake = make(tmp_path / "run", ["a\0b", "c"], captioners=("llava",))
    for file_format in ("parquet", "jsonl", "webdataset"):
        _, file = export_one(fake, tmp_path / file_format, file_format)
        assert "a\0b" in [row["llava"] for row in READERS[file_format][0](file)]
    for file_format, column in (("csv", "llava"), ("dreamlip", "longLLA_captions")):
        content, file = export_one(fake, tmp_path / file_format, file_format)
        assert [row[column] for row in read_csv(file)] == ["", "c"] or file_format == "csv"
        (fingerprint,) = content.folder.recorded()[0]
        assert content.folder.read(0, fingerprint).left_out == {"llava": {HAS_NUL: 1}}
    assert {row["llava_reason"] for row in read_csv(tmp_path / "csv" / "00000.csv")} == {"", HAS_NUL}


def dreamlip_run(folder: Path, texts: Sequence[str | None] = TEXTS) -> FakeRun:
    return make(folder, texts, captioners=("llava", "instructblip", "sharegpt4v"))


def test_dreamlip_has_the_published_columns_and_the_kind_of_a_captioner_decides_its_own(tmp_path: Path) -> None:
    fake = dreamlip_run(tmp_path / "run")
    _, file = export_one(fake, tmp_path / "out", "dreamlip")
    rows = read_csv(file)
    assert list(rows[0]) == [URL, RAW, *DREAMLIP_TEXTS]
    texts = {row["url"]: text or "" for row, text in zip(fake_run.fetched_rows(fake.run, 0), TEXTS, strict=True)}
    assert {row[URL]: row["longLLA_captions"] for row in rows} == texts
    assert all(row["longIB_captions"] and row["longSV_captions"] and not row["shortIB_captions"] for row in rows)
    _, file = export_one(fake, tmp_path / "named", "dreamlip", ["llava=shortSV_captions"])
    assert {row[URL]: row["shortSV_captions"] for row in read_csv(file)} == texts


@pytest.mark.parametrize(
    "file_format, captioners, message",
    [
        ("dreamlip", ("llava", "other"), "captioner 'other': DreamLIP's files have no column for it"),
        ("dreamlip", ("other=longest",), "DreamLIP's files have no column 'longest'; use shortIB_captions, longIB"),
        ("dreamlip", ("llava", "other=longLLA_captions"), "'llava' and 'other': both have the column 'longLLA"),
        ("parquet", ("llava=text", "other=text"), "'llava' and 'other': both have the column 'text'"),
        ("parquet", ("llava=url",), "captioner 'llava': the export has a column 'url' already"),
        ("parquet", ("llava", "other=llava_flags"), "captioner 'other': the export has a column 'llava_flags' already"),
        ("parquet", ("llava=",), "--captioners llava=: give a captioner's NAME, or NAME=COLUMN"),
        ("parquet", ("llava=a", "llava=b"), "--captioners llava=b: 'llava' has the column 'a' already"),
        ("parquet", ("nobody",), "no captions by nobody yet"),
        ("parket", (), "--format 'parket' is unknown; did you mean 'parquet'?"),
    ],
)
def test_columns_that_cannot_be_are_refused(
    tmp_path: Path, file_format: str, captioners: tuple[str, ...], message: str
) -> None:
    fake = make(tmp_path / "run", ["a"])
    with pytest.raises(UserError) as error:
        describe(fake.manifest, fake.run, str(tmp_path / "out"), file_format, captioners)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_columns_are_those_of_the_dataset_with_their_types(tmp_path: Path) -> None:
    fake = make(tmp_path / "run", ["a"])
    _, file = export_one(fake, tmp_path / "out", "parquet", ["other", "llava=short"])
    table = pq.read_table(file)
    assert table.column_names[-6:] == ["other", "other_flags", "other_reason", "short", "short_flags", "short_reason"]
    for field in schema.dataset(()):
        assert table.schema.field(field.name).type == field.type


def test_several_texts_of_a_captioner_are_columns_of_their_own(tmp_path: Path) -> None:
    fake = make(tmp_path / "run", ["a tag", None], captioners=("qwen_tag", "qwen_long", "other"))
    captioner = {
        "name": "qwen",
        "kind": "vlm",
        "model": "org/model",
        "prompts": {"long": "Describe it.", "tag": "Tag it."},
    }
    settings = fake.manifest.model_dump(mode="json", exclude_unset=True) | {"captioners": [captioner]}
    fake = dataclasses.replace(fake, manifest=Manifest.model_validate(settings))
    _, file = export_one(fake, tmp_path / "out", "jsonl", ["qwen"])
    rows = read_json_lines(file)
    assert [name for name in rows[0] if name[0] == "q"] == [
        f"qwen_{text}{ending}" for text in ("long", "tag") for ending in ("", "_flags", "_reason")
    ]
    assert [(row["qwen_tag"], row["qwen_tag_reason"]) for row in rows] == [("a tag", ""), (None, "poison")]
    assert all(row["qwen_long"].startswith("qwen_long on ") for row in rows)
    with pytest.raises(UserError, match=r"--captioners qwen=text: it makes several texts; name one of them"):
        describe(fake.manifest, fake.run, str(tmp_path / "out"), "parquet", ["qwen=text"])
    content = describe(fake.manifest, fake.run, str(tmp_path / "out"), "dreamlip", ["qwen_tag=shortLLA_captions"])
    assert content.columns == {"qwen_tag": "shortLLA_captions"}


def test_long_names_and_folders_fit_into_a_tar(tmp_path: Path) -> None:
    keys = ["a/" + "folder/" * 30 + "image", "é" * 120]
    columns = schema_of({})
    with TarWriter(tmp_path / "a.tar", columns) as writer:
        for key in keys:
            row = dict.fromkeys(columns.names) | {"key": key, "raw": None, "sources": [], "raws": []}
            writer.write(row, b"jpeg", True)
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "a.tar").read_bytes())) as tar:
        assert tar.getnames() == [f"{key}.{ending}" for key in keys for ending in ("jpg", "json")]


def test_samples_with_all_texts_come_first_in_a_tar_and_one_without_a_raw_text_has_no_such_member(
    tmp_path: Path,
) -> None:
    texts = {"none": (None, False), "raw": ("text", False), "caption": (None, True), "both": ("text", True)}
    columns = schema_of({})
    with TarWriter(tmp_path / "a.tar", columns) as writer:
        for key, (raw, is_complete) in texts.items():
            row = dict.fromkeys(columns.names) | {"key": key, "raw": raw, "sources": [], "raws": []}
            writer.write(row, b"jpeg", is_complete)
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = tar.getnames()
    assert list(dict.fromkeys(name.partition(".")[0] for name in names)) == ["both", "caption", "raw", "none"]
    assert [name for name in names if name.endswith("txt")] == ["both.txt", "raw.txt"]
