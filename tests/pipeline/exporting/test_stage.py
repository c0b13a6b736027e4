"""An export writes each shard once, notices what has changed, resumes, and never touches files that are not its own."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.digests import digest_of
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import stages
from lotlip_data.pipeline.core.outcome import Outcome
from lotlip_data.pipeline.exporting import stage
from lotlip_data.pipeline.exporting.folder import ExportFolder
from lotlip_data.pipeline.recaptioning.importing.caption_table import open_caption_table
from lotlip_data.pipeline.recaptioning.importing.stage import import_captions
from lotlip_data.synthetic.caption_writers import long_text
from tests.faults.s3 import BUCKET, fault_counts, s3_server
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.exporting.export_fixture import TRICKY, make
from tests.pipeline.run_fixture import FakeRun
from tests.support.kills import Killed, kill_at
from tests.support.paths import ROOT
from tests.support.processes import kill_driver

FAULT_RATES = {"refuse": 0.1, "lose": 0.05, "drop": 0.1}


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export in this process, so that a test can stop it at any step. An error of a task is its result."""

    def run_tasks(task: Callable[[Any], Any], items: Iterable[Any], name: str) -> Iterator[tuple[Any, Any]]:
        for item in items:
            try:
                yield item, task(item)
            except UserError as error:
                yield item, error

    monkeypatch.setattr(stage, "run_ray_tasks", run_tasks)


def files(folder: Path) -> dict[str, bytes]:
    """The contents of all files that a user sees."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def export(fake: FakeRun, out: Path, file_format: str = "parquet", *captioners: str) -> Outcome:
    return stages.export(fake.run, out, file_format, captioners=captioners)


def texts(folder: Path, column: str) -> dict[str, str | None]:
    """By uid, the texts of a Parquet export."""
    tables = [pq.read_table(file) for file in sorted(folder.glob("*.parquet"))]
    return {row["uid"]: row[column] for table in tables for row in table.to_pylist()}


def test_a_second_export_does_nothing_and_a_changed_shard_is_written_again(tmp_path: Path, without_ray: None) -> None:
    fake, out = fake_run.make(tmp_path / "run", shards=3), tmp_path / "out"
    first = export(fake, out)
    assert (first.figures["exported"], first.figures["rows"], first.failed) == (3, 24, [])
    assert first.summary[:2] == ["export: 3 shards with 24 rows", "  instructblip: 24 texts, 0 images without one"]
    assert texts(out, "llava") == {uid: long_text(scene, "llava") for uid, scene in fake.scenes.items()}
    before = files(out)
    assert list(before) == ["00000.parquet", "00001.parquet", "00002.parquet", "export-parquet.json"]
    index = json.loads(before["export-parquet.json"])
    assert index["rows"] == 24 and list(index["captioners"]) == ["instructblip", "llava", "sharegpt4v"]
    for entry in index["files"]:
        digest = digest_of(str(out / entry["name"]))
        assert (entry["rows"], entry["bytes"], entry["sha256"]) == (8, digest.bytes, digest.sha256)

    again = export(fake, out)
    assert not again.did_something and again.summary == ["export: nothing to do, all of it is done"]
    assert files(out) == before

    rows = fake_run.captions_of(fake.run, "llava", 1)
    rows[0]["text"] = "another text"
    fake_run.write_captions(fake.run, "llava", 1, rows)
    changed = export(fake, out)
    assert (changed.figures["exported"], changed.figures["skipped"]) == (1, 2)
    assert texts(out, "llava")[rows[0]["uid"]] == "another text"
    assert {name for name, content in files(out).items() if content != before.get(name)} == {
        "00001.parquet",
        "export-parquet.json",
    }

    (out / "00002.parquet").unlink()
    assert export(fake, out).figures["exported"] == 1
    assert files(out)["00002.parquet"] == before["00002.parquet"]
    fewer = export(fake, out, "parquet", "llava")
    assert fewer.figures["exported"] == 3
    assert "sharegpt4v" not in pq.read_schema(out / "00000.parquet").names


def test_missing_captions_are_named_with_what_to_do_and_the_other_shards_are_exported(
    tmp_path: Path, without_ray: None
) -> None:
    fake, out = fake_run.make(tmp_path / "run", shards=2), tmp_path / "out"
    storage.remove(fake.run.caption_shard("llava", 1))
    outcome = export(fake, out, "jsonl")
    (line,) = outcome.failed
    assert line.startswith("missing: captions by llava of 1 shard (00001): ")
    assert (
        f"`lotlip-data export {fake.run.url} --format jsonl --out {out} --captioners instructblip,sharegpt4v`" in line
    )
    assert list(files(out)) == ["00000.jsonl"]
    assert export(fake, out, "jsonl", "instructblip").failed == []
    assert list(files(out)) == ["00000.jsonl", "00001.jsonl", "export-jsonl.json"]


def test_files_and_folders_that_are_not_of_the_export_stay_as_they_are(tmp_path: Path, without_ray: None) -> None:
    fake, other = fake_run.make(tmp_path / "run", shards=1), fake_run.make(tmp_path / "other", shards=1)
    out = tmp_path / "out"
    out.mkdir()
    (out / "00007.tar").write_bytes(b"mine")
    (out / "cat.jpg").write_bytes(b"mine too")
    with pytest.raises(UserError, match=r"00007\.tar: exists, and no export of .* as webdataset made it"):
        export(fake, out, "webdataset")
    export(fake, out, "csv")  # of other names, so it can stand beside them
    with pytest.raises(UserError, match=r"00000\.csv: exists, and no export of .* as dreamlip made it"):
        export(fake, out, "dreamlip")
    with pytest.raises(UserError, match=r"has the export of another run, .*/run\. Name another folder"):
        export(other, out, "csv")
    assert {"00007.tar": b"mine", "cat.jpg": b"mine too"}.items() <= files(out).items()
    (tmp_path / "link").symlink_to(fake.run.lists)
    for folder in (
        fake.run.url,
        tmp_path / "link",
        fake.run.captions,
        f"{fake.run.images}/more",
        f"{fake.run.url}/train",
    ):
        with pytest.raises(UserError, match="is a folder of the run itself"):
            export(fake, Path(folder))
    with pytest.raises(UserError, match="is a file; name a folder"):
        export(fake, out / "cat.jpg")
    assert export(fake, Path(fake.run.url, "exported")).figures["rows"] == 8


def test_two_formats_with_files_of_the_same_names_never_share_a_folder(tmp_path: Path, without_ray: None) -> None:
    fake, out = fake_run.make(tmp_path / "run", shards=1), tmp_path / "out"
    storage.remove(fake.run.caption_shard("llava", 0))
    assert export(fake, out, "csv", "llava").failed and not files(out)  # no file yet, but the folder is that of CSVs
    with pytest.raises(UserError, match=r"has an export as csv, whose files have the same names"):
        export(fake, out, "dreamlip", "sharegpt4v=longSV_captions")
    export(fake, out, "csv", "sharegpt4v")
    assert list(files(out)) == ["00000.csv", "export-csv.json"]


def test_a_shard_that_the_run_no_longer_has_is_removed(tmp_path: Path, without_ray: None) -> None:
    fake, out = fake_run.make(tmp_path / "run", shards=3), tmp_path / "out"
    export(fake, out)
    for url in (fake.run.image_stats(2), fake.run.list_shard(2)):
        storage.remove(url)
    outcome = export(fake, out)
    assert (outcome.figures["removed"], outcome.figures["exported"], outcome.failed) == (1, 0, [])
    assert list(files(out)) == ["00000.parquet", "00001.parquet", "export-parquet.json"]
    assert not export(fake, out).did_something


def test_a_damaged_shard_costs_no_other_and_is_exported_once_it_is_there_again(
    tmp_path: Path, without_ray: None
) -> None:
    fake, out = fake_run.make(tmp_path / "run", shards=2), tmp_path / "out"
    content = storage.read_bytes(fake.run.caption_shard("llava", 0))
    storage.replace(fake.run.caption_shard("llava", 0), content[:-100])
    outcome = export(fake, out)
    assert len(outcome.failed) == 1 and "captions/llava/00000.parquet: cannot be read" in outcome.failed[0]
    assert list(files(out)) == ["00001.parquet"]
    storage.replace(fake.run.caption_shard("llava", 0), content)
    assert export(fake, out).figures["rows"] == 8
    assert list(files(out)) == ["00000.parquet", "00001.parquet", "export-parquet.json"]


def test_a_csv_of_dreamlip_comes_back_through_import_as_it_was(tmp_path: Path, without_ray: None) -> None:
    """Texts of any characters; `import` alone strips white space at the ends of a text, as of any table."""
    names = {"instructblip": "dreamlip-instructblip", "llava": "dreamlip-llava", "sharegpt4v": "dreamlip-sharegpt4v"}
    fake = make(tmp_path / "run", (*TRICKY, None), captioners=("llava", "instructblip", "sharegpt4v"))
    export(fake, tmp_path / "out", "dreamlip")
    table = open_caption_table(str(tmp_path / "out" / "*.csv"), table_format="dreamlip")
    summary = import_captions(fake.run, table)
    assert (summary.matched, summary.unmatched, summary.defects) == (len(TRICKY) + 1, {}, {})
    for name, imported in names.items():
        mine, theirs = (
            {
                row["uid"]: (row["text"] or "").strip()
                for row in pq.read_table(fake.run.caption_shard(each, 0)).to_pylist()
            }
            for each in (name, imported)
        )
        assert mine == theirs
    export(fake, tmp_path / "again", "dreamlip", *names.values())
    first, again = (read_csv(tmp_path / folder / "00000.csv") for folder in ("out", "again"))
    assert again == [{name: text.strip() for name, text in row.items()} for row in first]


def read_csv(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by URL."""
    with file.open(newline="", encoding="utf-8") as stream:
        return sorted(csv.DictReader(stream), key=lambda row: row["Image Path"])


@pytest.mark.parametrize("is_first", [True, False])
def test_killed_at_any_step_every_file_is_whole_and_the_next_export_completes_it(
    tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    """Kill before every change of the storage: of a first export, and of one after captions and shards have changed."""
    fake = fake_run.make(tmp_path / "run", shards=3, images=3, writers=["llava"])
    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "out"
    old.mkdir()
    if not is_first:
        export(fake, old, "csv")
        rows = [row | {"text": "new"} for row in fake_run.captions_of(fake.run, "llava", 1)]
        fake_run.write_captions(fake.run, "llava", 1, rows)
        for url in (fake.run.image_stats(2), fake.run.list_shard(2)):
            storage.remove(url)
    shutil.copytree(old, new)
    export(fake, new, "csv")
    whole, before, ended, steps = files(new), files(old), False, 0
    while not ended:
        shutil.copytree(old, out)
        with monkeypatch.context() as patch:
            kill_at(steps, patch)
            try:
                export(fake, out, "csv")
                ended = True
            except Killed:
                steps += 1
        for name, content in files(out).items():
            assert name[0] == "." or content in (whole.get(name), before.get(name)), (steps, name)
        assert export(fake, out, "csv").failed == []
        assert {name: content for name, content in files(out).items() if name[0] != "."} == whole
        assert not export(fake, out, "csv").did_something
        shutil.rmtree(out)
    assert steps >= 8


@pytest.mark.slow
def test_a_killed_export_leaves_whole_files_and_the_next_one_writes_the_others(
    tmp_path: Path, ray_cluster: None
) -> None:
    fake = fake_run.make(tmp_path / "run", shards=32, images=12)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    export(fake, undisturbed, "webdataset")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    arguments = ["tests.pipeline.exporting.export_fixture", fake.run.url, str(killed), "webdataset"]
    driver = subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, env=environment)
    folder = ExportFolder(str(killed), "webdataset", "tar")
    deadline = time.monotonic() + 300  # the machine may be busy
    while not folder.recorded():
        assert time.monotonic() < deadline and driver.poll() is None, "the driver has not committed anything"
        time.sleep(0.005)
    kill_driver(driver)
    whole, left = files(undisturbed), {name: data for name, data in files(killed).items() if name[0] != "."}
    assert left and left.items() <= whole.items()
    done = len(folder.recorded())
    assert 0 < done < 32 and "export-webdataset.json" not in left
    outcome = export(fake, killed, "webdataset")
    assert (outcome.figures["exported"], outcome.figures["skipped"], outcome.failed) == (32 - done, done, [])
    assert {name: data for name, data in files(killed).items() if name[0] != "."} == whole


@pytest.mark.slow
def test_a_run_on_s3_is_exported_to_s3(tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts, exclusive creates and changes are seen there as on a disk, also with errors of the server."""
    fake, local = fake_run.make(tmp_path / "run", shards=1, images=2), tmp_path / "out"
    export(fake, local, "webdataset")
    with s3_server(tmp_path, **FAULT_RATES) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # or it keeps the endpoint of an earlier test
        run, out = Run.at(f"s3://{BUCKET}/a run"), f"s3://{BUCKET}/out"
        for name in storage.list_below(fake.run.url):
            assert storage.create_from_file(f"{run.url}/{name}", f"{fake.run.url}/{name}")
        assert stages.export(run, out, "webdataset").figures["exported"] == 1
        assert not stages.export(run, out, "webdataset").did_something
        assert storage.read_bytes(f"{out}/00000.tar") == (local / "00000.tar").read_bytes()
        rows = [row | {"text": "new"} for row in fake_run.captions_of(fake.run, "llava", 0)]
        fake_run.write_captions(run, "llava", 0, rows)
        assert stages.export(run, out, "webdataset").figures["exported"] == 1
        assert not stages.export(run, out, "webdataset").did_something
        assert storage.read_bytes(f"{out}/00000.tar") != (local / "00000.tar").read_bytes()
        with pytest.raises(UserError, match="has the export of another run"):
            stages.export(fake.run, out, "webdataset")
    assert sum(fault_counts(tmp_path).values()) >= 3
