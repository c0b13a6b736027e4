"""Imported captions are joined to images by URL alone, and committed like those of a captioner."""

import csv
import json
import math
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import external_buckets
from lotlip_data.pipeline.dataset.stage import shard as build
from lotlip_data.pipeline.dataset.stats import dataset_stats
from lotlip_data.pipeline.dataset.verify import verify
from lotlip_data.pipeline.recaptioning.caption_table import CaptionImportError, open_caption_table
from lotlip_data.pipeline.recaptioning.import_captions import import_captions
from lotlip_data.pipeline.recaptioning.results import RecaptionError
from lotlip_data.pipeline.reporting.status import get_status
from lotlip_data.pipeline.url_lists.rows import ListError
from tests.pipeline.run_fixture import FakeRun, fetched_rows, make, write_images

COLUMNS = ("Image Path", "raw_caption", "longIB_captions", "longSV_captions", "longLLA_captions")


def images_of(run: Run, shards: int) -> list[dict[str, Any]]:
    return [row for shard in range(shards) for row in fetched_rows(run, shard)]


def text_of(captioner: str, url: str) -> str:
    return f'A "{captioner}" text, of {url}. It has two sentences.'


def write_dreamlip(path: pathlib.Path, urls: list[str]) -> str:
    """Write a table with DreamLIP's published columns and the rows in the order of `urls`."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for url in urls:
            writer.writerow([url, "raw", *(text_of(name, url) for name in ("IB", "SV", "LLA"))])
    return str(path)


def captions(run: Run, name: str, shards: int) -> dict[str, dict[str, Any]]:
    """By uid, the committed caption rows of a captioner."""
    tables = [pq.read_table(run.caption_shard(name, shard)) for shard in range(shards)]
    return {row["uid"]: row for table in tables for row in table.to_pylist()}


@pytest.fixture
def fake(tmp_path: pathlib.Path) -> FakeRun:
    return make(tmp_path / "run", shards=3, images=8, writers=())


def test_each_image_gets_the_text_of_its_url_in_any_order_of_the_table(
    fake: FakeRun, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_buckets, "BUCKET_BYTES", 500)  # many buckets
    urls = [image["url"] for image in images_of(fake.run, 3)]
    missing, present = urls[5], [url for url in reversed(urls) if url != urls[5]]
    gone = "http://images.test/gone-1.jpg"
    listed = [*present, present[3], "http://elsewhere.test/1.jpg", gone, "no url", present[0] + "?x=1"]
    table = open_caption_table(write_dreamlip(tmp_path / "d.csv", listed), table_format="dreamlip")
    summary = import_captions(fake.run, table)
    for column, name in (("IB", "instructblip"), ("SV", "sharegpt4v"), ("LLA", "llava")):
        rows = captions(fake.run, f"dreamlip-{name}", 3)
        assert len(rows) == len(urls)
        for image in images_of(fake.run, 3):
            row = rows[image["uid"]]
            assert (row["key"], row["sha256"]) == (image["key"], image["sha256"])
            if image["url"] == missing:
                assert (row["text"], row["error"]) == (None, "not in the imported table")
            else:
                assert (row["text"], row["error"]) == (text_of(column, image["url"]), None)
    assert (summary.rows, summary.matched, summary.shards, summary.skipped) == (28, 23, 3, 0)
    assert dict(summary.unmatched) == {
        "not an http or https URL": 1,
        "an earlier row has this URL": 1,
        "no fetched shard has this URL": 2,
        "its image could not be fetched": 1,
    }
    assert json.loads(json.dumps(summary.to_dict()))["unmatched"] == dict(summary.unmatched)
    assert summary.report is not None
    report = pq.read_table(summary.report).to_pylist()
    assert sorted((row["row"], row["url"]) for row in report)[:4] == [
        (24, present[3]),
        (25, "http://elsewhere.test/1.jpg"),
        (26, gone),
        (27, "no url"),
    ]
    assert summary.without == dict.fromkeys(summary.captions, 1)
    listed_without = pq.read_table(fake.run.quarantine("captions", "dreamlip-llava", "00000.parquet")).to_pylist()
    assert [row["error"] for row in listed_without] == ["not in the imported table"]


def test_a_dataset_can_be_built_from_imported_captions(
    ray_cluster: None, fake: FakeRun, tmp_path: pathlib.Path
) -> None:
    urls = [image["url"] for image in images_of(fake.run, 3)]
    import_captions(fake.run, open_caption_table(write_dreamlip(tmp_path / "d.csv", urls), table_format="dreamlip"))
    assert build(fake.manifest, fake.run).samples == 24
    assert verify(fake.run) == []
    stats = dataset_stats(fake.run)
    assert (stats["images"], stats["texts"], stats["sub_captions_per_text"]) == (24, 72, 2.0)
    assert get_status(fake.run)["captioners"]["dreamlip-llava"]["done"] == 24


def test_a_second_import_does_nothing_and_a_later_one_imports_new_shards_only(
    fake: FakeRun, tmp_path: pathlib.Path
) -> None:
    urls = [image["url"] for image in images_of(fake.run, 3)] + ["http://images.test/5000.jpg"]
    file = write_dreamlip(tmp_path / "d.csv", urls)
    import_captions(fake.run, open_caption_table(file, table_format="dreamlip"))
    storage.remove(fake.run.caption_shard("dreamlip-llava", 1))  # as if killed before this commit
    before = storage.list_below(fake.run.captions)
    second = import_captions(fake.run, open_caption_table(file, table_format="dreamlip"))
    assert (second.shards, second.captions) == (1, {"dreamlip-llava": 8})
    third = import_captions(fake.run, open_caption_table(file, table_format="dreamlip"))
    assert (third.shards, third.skipped, third.rows) == (0, 3, 0)
    assert set(before) < set(storage.list_below(fake.run.captions))
    write_images(fake.run, 3, [5000])
    fourth = import_captions(fake.run, open_caption_table(file, table_format="dreamlip"))
    assert (fourth.shards, fourth.skipped, sum(fourth.captions.values())) == (1, 3, 3)


def test_another_table_under_the_same_name_is_refused_before_anything_is_written(
    fake: FakeRun, tmp_path: pathlib.Path
) -> None:
    urls = [image["url"] for image in images_of(fake.run, 3)]
    first = open_caption_table(write_dreamlip(tmp_path / "d.csv", urls), ["mine=longIB_captions"], "Image Path")
    import_captions(fake.run, first)
    other = open_caption_table(str(tmp_path / "d.csv"), ["mine=longSV_captions"], "Image Path")
    with pytest.raises(RecaptionError, match=r"holds captions of mine@\w+, but the settings now make mine@\w+"):
        import_captions(fake.run, other)


def test_a_table_of_other_images_is_refused_and_leaves_no_captioner(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    file = write_dreamlip(tmp_path / "d.csv", ["http://elsewhere.test/1.jpg"])
    with pytest.raises(CaptionImportError, match=r"none of its 1 rows has the URL .*1 × no fetched shard has this URL"):
        import_captions(fake.run, open_caption_table(file, table_format="dreamlip"))
    assert storage.list_names(fake.run.captions) == []


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_any_table_with_a_url_column_and_caption_columns_can_be_imported(
    fake: FakeRun, tmp_path: pathlib.Path, ending: str
) -> None:
    rows = [{"link": image["url"], "a": f"Text {image['url']}.", "b": None} for image in images_of(fake.run, 3)]
    file = tmp_path / f"t.{ending}"
    if ending == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    table = open_caption_table(str(file), ["one=a", "two=b"], "link")
    summary = import_captions(fake.run, table)
    assert (summary.captions["one"], summary.without["two"]) == (24, 24)
    assert {row["error"] for row in captions(fake.run, "two", 3).values()} == {"empty in the imported table"}


def test_errors_in_the_arguments_say_how_to_fix_them(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    file = write_dreamlip(tmp_path / "d.csv", ["http://a.test/1"])
    for arguments, message in (
        ((file,), "name each captioner and its column"),
        ((file, ["llava"]), "--captioner llava: give NAME=COLUMN"),
        ((file, ["raw=longIB_captions"]), "captioner 'raw': the dataset has a column 'raw' already"),
        ((file, ["Big=longIB_captions"]), "may contain only lowercase letters, digits, - and _"),
        ((str(tmp_path / "d.xls"), ["a=b"]), "the ending of .*d.xls' is unknown"),
        ((file, [], None, "dreamlab"), "--format dreamlab: use dreamlip, csv, tsv, jsonl, parquet"),
    ):
        with pytest.raises(CaptionImportError, match=message):
            open_caption_table(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ListError, match=r"d\.csv: has no column 'nope'; its columns are 'Image Path'"):
        import_captions(fake.run, open_caption_table(file, ["a=nope"], "Image Path"))
    with pytest.raises(CaptionImportError, match=r"none\.csv: there is no such file"):
        open_caption_table(str(tmp_path / "none.csv"), table_format="dreamlip")


def test_a_run_with_a_single_shard_can_be_imported_into(tmp_path: pathlib.Path) -> None:
    fake = make(tmp_path / "run", shards=1, images=4, writers=())
    urls = [image["url"] for image in images_of(fake.run, 1)]
    summary = import_captions(
        fake.run, open_caption_table(write_dreamlip(tmp_path / "d.csv", urls), table_format="dreamlip")
    )
    assert (summary.matched, summary.shards, summary.report) == (4, 1, None)


def test_captions_that_are_no_texts_are_missing_and_counted_and_a_column_of_lists_is_an_error(
    fake: FakeRun, tmp_path: pathlib.Path
) -> None:
    rows = images_of(fake.run, 3)
    cells: list[Any] = ["A text.", ["A list."], {"en": "An object."}, math.nan, *["Another text."] * (len(rows) - 4)]
    lines = [json.dumps({"url": row["url"], "t": cell}) for row, cell in zip(rows, cells, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    summary = import_captions(fake.run, open_caption_table(str(tmp_path / "t.jsonl"), ["mine=t"]))
    assert summary.defects == {"t: a list, not a text": 1, "t: an object, not a text": 1}
    assert summary.captions["mine"] == sum(
        isinstance(cell, str) and row["status"] == "success" for row, cell in zip(rows, cells, strict=True)
    )
    pq.write_table(pa.table({"url": [row["url"] for row in rows], "t": [["a"]] * len(rows)}), tmp_path / "t.parquet")
    with pytest.raises(ListError, match=r"t\.parquet: the column 't' is list<.*>, not a text"):
        import_captions(fake.run, open_caption_table(str(tmp_path / "t.parquet"), ["other=t"]))
