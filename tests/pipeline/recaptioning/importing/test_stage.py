"""Imported captions are joined to images by URL alone, and committed like those of a captioner."""

import csv
import json
import math
import pathlib
import shutil
import sys
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
from lotlip_data.pipeline.recaptioning.importing import claims as import_claims
from lotlip_data.pipeline.recaptioning.importing.caption_table import CaptionImportError, open_caption_table
from lotlip_data.pipeline.recaptioning.importing.claims import import_command
from lotlip_data.pipeline.recaptioning.importing.stage import ImportSummary, import_captions
from lotlip_data.pipeline.recaptioning.results import RecaptionError
from lotlip_data.pipeline.reporting.status import get_status
from lotlip_data.pipeline.url_lists.rows import ListError
from tests.pipeline.run_fixture import (
    FakeRun,
    captions_of,
    claim_captioner,
    fetched_rows,
    make,
    write_captions,
    write_images,
)

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


def import_mine(run: Run, file: str, column: str = "longIB_captions", replace: bool = False) -> ImportSummary:
    return import_captions(run, open_caption_table(file, [f"mine={column}"], "Image Path"), replace)


def correct(file: str) -> None:
    """Change the texts of a table, but not its size."""
    pathlib.Path(file).write_bytes(pathlib.Path(file).read_bytes().replace(b"two sentences", b"2   sentences"))


def texts(run: Run) -> set[str]:
    return {row["text"] for row in captions(run, "mine", 3).values()}


def test_another_table_under_the_same_name_is_refused_before_anything_is_written(
    fake: FakeRun, tmp_path: pathlib.Path
) -> None:
    urls = [image["url"] for image in images_of(fake.run, 3)]
    file = write_dreamlip(tmp_path / "d.csv", urls)
    import_mine(fake.run, file)
    before = storage.stamps_below(fake.run.url)
    reason = r"captions/mine: holds captions that were imported from d\.csv#longIB_captions: "
    with pytest.raises(RecaptionError, match=rf"{reason}not from this table.*--replace.*another name"):
        import_mine(fake.run, file, "longSV_captions")
    correct(file)
    with pytest.raises(RecaptionError, match=rf"{reason}this table has changed since.*--replace"):
        import_mine(fake.run, file)
    assert storage.stamps_below(fake.run.url) == before


def test_a_copy_of_the_same_table_is_the_same_table(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    file = write_dreamlip(tmp_path / "d.csv", [image["url"] for image in images_of(fake.run, 3)])
    import_mine(fake.run, file)
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copyfile(file, tmp_path / "elsewhere" / "d.csv")
    assert import_mine(fake.run, str(copy)).skipped == 3


def test_a_corrected_table_replaces_the_captions_of_the_first(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    urls = [image["url"] for image in images_of(fake.run, 3)]
    file = write_dreamlip(tmp_path / "d.csv", urls)
    import_mine(fake.run, file)
    correct(file)
    summary = import_mine(fake.run, file, replace=True)
    assert (summary.shards, summary.skipped, summary.captions) == (3, 0, {"mine": 24})
    assert all("2   sentences" in text for text in texts(fake.run))
    assert import_mine(fake.run, file).skipped == 3
    assert get_status(fake.run)["captioners"]["mine"]["done"] == 24


def test_a_replacement_that_does_not_fit_the_run_leaves_the_captions(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    urls = [image["url"] for image in images_of(fake.run, 3)]
    import_mine(fake.run, write_dreamlip(tmp_path / "d.csv", urls))
    before = storage.stamps_below(fake.run.captions)
    with pytest.raises(CaptionImportError, match="none of its 1 rows"):
        import_mine(fake.run, write_dreamlip(tmp_path / "e.csv", ["http://elsewhere.test/1.jpg"]), replace=True)
    assert storage.stamps_below(fake.run.captions) == before


def test_a_replacement_that_is_killed_is_completed_by_the_next(
    fake: FakeRun, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions of the two tables never lie under one record."""
    urls = [image["url"] for image in images_of(fake.run, 3)]
    import_mine(fake.run, write_dreamlip(tmp_path / "d.csv", urls))
    corrected = write_dreamlip(tmp_path / "corrected.csv", urls)
    writer = sys.modules[import_captions.__module__]
    for module, name in (
        (import_claims, "asdict"),
        (writer, "encode_rows"),
    ):  # before the record, and the first caption

        def fail(*arguments: object, **metadata: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, fail)
            import_mine(fake.run, corrected, replace=True)
        assert storage.list_names(fake.run.captioner("mine"), ".parquet") == []
    assert import_mine(fake.run, corrected, replace=True).captions == {"mine": 24}


def test_captions_of_a_model_are_never_replaced(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    urls = [image["url"] for image in images_of(fake.run, 3)]
    claim_captioner(fake.run, "mine")
    write_captions(fake.run, "mine", 0, captions_of(fake.run, "llava", 0))
    with pytest.raises(RecaptionError, match=r"captions that mine@1 made. Give the imported captions another name"):
        import_mine(fake.run, write_dreamlip(tmp_path / "d.csv", urls), replace=True)


def test_a_missing_caption_shard_is_imported_by_the_command_that_shard_names(
    fake: FakeRun, tmp_path: pathlib.Path
) -> None:
    file = write_dreamlip(tmp_path / "d d.csv", [image["url"] for image in images_of(fake.run, 3)])
    import_mine(fake.run, file)
    command = import_command(fake.run, "mine")
    assert command == (
        f"`lotlip-data import '{file}' {fake.run.url} --captioner mine=longIB_captions --url-column 'Image Path'`"
    )


def test_a_table_without_header_is_read_with_the_names_of_its_columns(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    (tmp_path / "d.tsv").write_text("".join(f"{image['url']}\tA text.\n" for image in images_of(fake.run, 3)))
    table = open_caption_table(str(tmp_path / "d.tsv"), ["mine=text"], column_names=["url", "text"])
    assert import_captions(fake.run, table).captions == {"mine": 24}
    assert import_command(fake.run, "mine").endswith("--captioner mine=text --url-column url --columns url,text`")


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
        ((file, [], None, "dreamlab"), "--format dreamlab: use dreamlip, recap-long, csv, tsv, jsonl, parquet"),
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


@pytest.mark.parametrize(
    ("columns", "url", "option"),
    [
        (["mine=longIB_captions"], "url", "Name the column of the URLs with --url-column"),
        (["mine=longIB_caption"], "Image Path", "Name the column of each .* with --captioner NAME=COLUMN"),
    ],
)
def test_a_column_that_the_table_lacks_is_named_with_the_option_that_selects_it(
    fake: FakeRun, tmp_path: pathlib.Path, columns: list[str], url: str, option: str
) -> None:
    file = write_dreamlip(tmp_path / "d.csv", ["http://images.test/1.jpg"])
    with pytest.raises(
        ListError, match=rf"d\.csv: has no column .* its columns are 'Image Path', .*\. {option}.*--columns$"
    ):
        import_captions(fake.run, open_caption_table(file, columns, url))
