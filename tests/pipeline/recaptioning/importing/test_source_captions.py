"""Captions that the lists of a manifest carry are imported in place of captioning, and again if a list has changed."""

import json
import pathlib
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import manifest as manifests
from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import import_captions, status
from lotlip_data.pipeline.recaptioning.importing import claims, stage
from lotlip_data.pipeline.recaptioning.importing.claims import import_command
from lotlip_data.pipeline.recaptioning.results import RecaptionError
from lotlip_data.pipeline.url_lists.rows import ListError
from tests.pipeline.recaptioning.importing.test_caption_table import write_csv
from tests.pipeline.run_fixture import captions_of, claim_captioner, fetched_rows, write_captions, write_images

SEEDS = range(8)
URLS = [f"http://images.test/{seed}.jpg" for seed in range(16)]


def make_run(tmp_path: pathlib.Path, sources: list[dict[str, Any]], **settings: Any) -> tuple[Run, Manifest]:
    """A run with two shards of images, of a manifest with these sources."""
    run = Run.at(str(tmp_path / "run"))
    content = {"name": "x", "sources": sources, "train": [], **settings}
    manifest = manifests.with_absolute_paths(Manifest.model_validate(content), str(tmp_path))
    manifests.freeze(manifest, run)
    for shard in range(2):
        write_images(run, shard, [shard * 8 + seed for seed in SEEDS])
    return run, manifest


def texts(run: Run, name: str) -> dict[str, str | None]:
    urls = {row["uid"]: row["url"] for shard in range(2) for row in fetched_rows(run, shard)}
    rows = [row for shard in range(2) for row in pq.read_table(run.caption_shard(name, shard)).to_pylist()]
    return {urls[row["uid"]]: row["text"] for row in rows}


def two_lists(tmp_path: pathlib.Path) -> list[dict[str, Any]]:
    """One list with all captions in one file, and one with a file for each captioner."""
    header = ("Image Path", "raw_caption", "longIB_captions", "longLLA_captions", "longSV_captions")
    write_csv(tmp_path / "one.csv", header, [(url, "raw", f"IB {url}", f"LLA {url}", f"SV {url}") for url in URLS[:9]])
    for name in ("IB", "LLA", "SV"):
        write_csv(
            tmp_path / f"two_{name}.csv", ("url", name), [(url, f"{name} of two {url}") for url in URLS[8:][::-1]]
        )
    return [
        {"use": "dreamlip-cc3m", "files": ["one.csv"]},
        {"use": "recap-long-coyo", "files": ["two_*.csv"]},
    ]


def test_the_captions_of_all_lists_become_those_of_one_captioner_each(tmp_path: pathlib.Path) -> None:
    """A URL in two lists has the caption of the first one."""
    run, _ = make_run(tmp_path, two_lists(tmp_path))
    assert status(run).figures["not_started"]["import"] == ["instructblip", "llava", "sharegpt4v"]
    outcome = import_captions(run)
    assert outcome.figures["captions"] == {"instructblip": 16, "llava": 16, "sharegpt4v": 16}
    assert outcome.figures["differing"] == {"instructblip": 1, "llava": 1, "sharegpt4v": 1}
    for name, short in (("instructblip", "IB"), ("llava", "LLA"), ("sharegpt4v", "SV")):
        expected = {url: f"{short} {url}" for url in URLS[:9]} | {url: f"{short} of two {url}" for url in URLS[9:]}
        assert texts(run, name) == expected
    assert import_command(run, "llava") == f"`lotlip-data import {run.url}`"
    again = import_captions(run)
    assert (again.did_something, again.figures["skipped"]) == (False, 2)


def test_status_names_the_import_before_anything_else_once_images_are_there(tmp_path: pathlib.Path) -> None:
    run, _ = make_run(tmp_path, two_lists(tmp_path))
    write_partition(run)
    inspection = status(run)
    assert inspection.figures["next"] == f"lotlip-data import {run.url}"
    assert [line.split()[:2] for line in inspection.lines if line.startswith("import")] == [
        ["import", "instructblip"],
        ["import", "llava"],
        ["import", "sharegpt4v"],
    ]
    import_captions(run)
    assert status(run).figures["next"] == f"lotlip-data shard {run.url}"
    storage.remove(run.caption_shard("llava", 1))
    assert status(run).figures["next"] == f"lotlip-data import {run.url}"


def write_partition(run: Run) -> None:
    counts = {"images": 18, "shards": 2, "samples_per_shard": 9, "rows": 18, "duplicates": 0, "invalid": {}}
    storage.create(run.plan, json.dumps(counts | {"sources": {}}).encode())


@pytest.mark.parametrize("module, name", [(claims, "asdict"), (stage, "encode_rows")])
def test_a_killed_import_is_completed_by_the_next_and_nothing_is_written_twice(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    """Killed before the record of the table, and before the last file."""
    run, _ = make_run(tmp_path, two_lists(tmp_path))
    calls = 0

    def fail(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    function = getattr(module, name)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, name, fail)
        import_captions(run)
    before = {path: stamp for path, stamp in storage.stamps_below(run.captions).items() if path.endswith(".parquet")}
    assert len(before) < 6
    import_captions(run)
    after = storage.stamps_below(run.captions)
    assert {path: after[path] for path in before} == before
    assert all(None not in texts(run, captioner).values() for captioner in ("instructblip", "llava", "sharegpt4v"))


def test_a_list_that_has_changed_is_imported_again_and_a_copy_with_another_time_is_not(tmp_path: pathlib.Path) -> None:
    run, _ = make_run(tmp_path, two_lists(tmp_path))
    import_captions(run)
    write_partition(run)
    file = tmp_path / "one.csv"
    file.write_bytes(file.read_bytes())
    assert status(run).figures["next"] == f"lotlip-data import {run.url}"
    assert not import_captions(run).did_something
    assert (status(run).figures["stale"], status(run).figures["next"]) == ([], f"lotlip-data shard {run.url}")
    file.write_bytes(file.read_bytes().replace(b"LLA http", b"New http"))
    stale = status(run)
    assert (stale.figures["next"], len(stale.figures["stale"])) == (f"lotlip-data import {run.url}", 3)
    assert f"  import llava: {file} has changed since its captions were imported" in stale.lines
    outcome = import_captions(run)
    assert outcome.figures["captions"] == {"instructblip": 16, "llava": 16, "sharegpt4v": 16}
    assert texts(run, "llava")[URLS[0]] == f"New {URLS[0]}"
    file.write_bytes(b"Image Path,longIB_captions,longLLA_captions,longSV_captions\n")
    (tmp_path / "two_IB.csv").write_text("url,IB\nhttp://elsewhere.test/1,x\n")
    (tmp_path / "two_LLA.csv").write_text("url,LLA\n")
    (tmp_path / "two_SV.csv").write_text("url,SV\n")
    before = storage.stamps_below(run.captions)
    with pytest.raises(UserError, match="none of its 1 rows has the URL"):
        import_captions(run)
    assert storage.stamps_below(run.captions) == before


def test_another_column_in_the_manifest_replaces_the_captions_of_the_first(tmp_path: pathlib.Path) -> None:
    """The columns of captions can change in a run: they do not decide which images it has."""
    write_csv(tmp_path / "l.csv", ("url", "a", "b"), [(url, f"A {url}", f"B {url}") for url in URLS])
    run, manifest = make_run(tmp_path, [{"name": "l", "files": "l.csv", "text": None, "captions": {"mine": "a"}}])
    import_captions(run)
    assert texts(run, "mine")[URLS[1]] == f"A {URLS[1]}"
    (source,) = manifest.sources
    changed = manifest.model_copy(update={"sources": (source.model_copy(update={"captions": {"mine": "b"}}),)})
    manifests.freeze(changed, run, update=True)
    assert [entry["name"] for entry in status(run).figures["stale"]] == ["mine"]
    import_captions(run)
    assert status(run).figures["stale"] == []
    assert texts(run, "mine")[URLS[1]] == f"B {URLS[1]}"


def test_a_column_that_was_found_can_be_named_later(tmp_path: pathlib.Path) -> None:
    write_csv(tmp_path / "l.csv", ("url", "LLA"), [(url, f"A {url}") for url in URLS])
    source = {"name": "l", "files": "l.csv", "url": "find", "text": None, "captions": {"llava": "find"}}
    run, manifest = make_run(tmp_path, [source])
    import_captions(run)
    (found,) = manifest.sources
    named = manifest.model_copy(update={"sources": (found.model_copy(update={"captions": {"llava": "LLA"}}),)})
    manifests.freeze(named, run, update=True)
    assert not import_captions(run).did_something
    assert status(run).figures["stale"] == []


def test_lists_that_are_gone_are_an_error_only_while_captions_are_missing(tmp_path: pathlib.Path) -> None:
    run, _ = make_run(tmp_path, two_lists(tmp_path))
    import_captions(run)
    (tmp_path / "one.csv").unlink()
    assert status(run).figures["stale"] == []
    assert not import_captions(run).did_something
    storage.remove(run.caption_shard("llava", 1))
    with pytest.raises(ListError, match=r"one\.csv: there is no such file"):
        import_captions(run)


def test_captions_of_another_table_are_replaced_only_on_request(tmp_path: pathlib.Path) -> None:
    run, _ = make_run(tmp_path, two_lists(tmp_path))
    corrected = write_csv(tmp_path / "mine.csv", ("url", "text"), [(url, "Mine.") for url in URLS])
    import_captions(run, corrected, ["llava=text"])
    with pytest.raises(RecaptionError, match=r"imported from mine\.csv#text: not from this table.*--replace"):
        import_captions(run)
    import_captions(run, replace=True)
    assert texts(run, "llava")[URLS[0]] == f"LLA {URLS[0]}"


def test_a_captioner_cannot_have_the_name_of_another_column_of_the_dataset(tmp_path: pathlib.Path) -> None:
    write_csv(tmp_path / "l.csv", ("url", "a"), [(url, "A text.") for url in URLS])
    run, _ = make_run(tmp_path, [{"name": "l", "files": "l.csv", "text": None, "captions": {"raw": "a"}}])
    with pytest.raises(ListError, match="source l: captioner 'raw': the dataset has a column 'raw' already"):
        import_captions(run)


def test_captions_of_a_model_are_not_replaced(tmp_path: pathlib.Path) -> None:
    run, _ = make_run(tmp_path, two_lists(tmp_path))
    claim_captioner(run, "llava")
    write_captions(run, "llava", 0, captions_of(run, "llava", 0))
    with pytest.raises(RecaptionError, match="holds captions that llava@1 made"):
        import_captions(run)


def test_a_captioner_without_a_column_is_an_error_that_names_the_setting(tmp_path: pathlib.Path) -> None:
    write_csv(tmp_path / "l.csv", ("url", "raw", "IB", "LLA"), [(url, "r", "A text.", "B text.") for url in URLS])
    run, _ = make_run(tmp_path, [{"use": "recap-long-laion", "files": "l.csv"}])
    message = (
        r"source recap-long-laion: .*l\.csv: no column of the long texts of sharegpt4v; the columns of .* are 'url', "
        r"'raw', 'IB', 'LLA'. Name the column in `captions: \{sharegpt4v: COLUMN\}`"
    )
    with pytest.raises(ListError, match=message):
        import_captions(run)


def test_a_run_without_such_lists_needs_a_table(tmp_path: pathlib.Path) -> None:
    run, _ = make_run(tmp_path, [{"name": "l", "files": "l.csv"}])
    with pytest.raises(UserError, match="no source carries captions"):
        import_captions(run)
    with pytest.raises(UserError, match="these options describe a table"):
        import_captions(run, columns=["a=b"])
