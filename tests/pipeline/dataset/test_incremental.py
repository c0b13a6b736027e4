"""If inputs change, only affected shards are written, and readers see the old or the new dataset, even after a kill."""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.dataset import publish, stage
from lotlip_data.pipeline.dataset import writer as shard_files
from lotlip_data.pipeline.dataset.publish import STILL_SECONDS, remove_orphans
from lotlip_data.pipeline.dataset.stage import ShardSummary, shard
from lotlip_data.pipeline.dataset.verify import verify
from lotlip_data.pipeline.verification.run import verify_run
from lotlip_data.synthetic.caption_writers import WRITERS
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.run_fixture import FakeRun
from tests.support.kills import Killed, kill_at


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build shards in this process, so that a test can stop it at any step."""

    def run_tasks(task: Callable[[Any], Any], items: Iterable[Any], name: str) -> Iterator[tuple[Any, Any]]:
        return ((item, task(item)) for item in items)

    monkeypatch.setattr(stage, "run_ray_tasks", run_tasks)


def caption(fake: FakeRun, name: str, shards: Iterable[int]) -> None:
    fake_run.claim_captioner(fake.run, name)
    for number in shards:
        fake_run.write_captions(fake.run, name, number, fake_run.captions_of(fake.run, name, number))


def build(fake: FakeRun, run: Run | None = None) -> ShardSummary:
    return shard(fake.manifest, run or fake.run)


def check_whole(run: Run) -> list[str]:
    """The captioners of the dataset. Asserts that each file exists as dataset.json says and has their columns."""
    content = dataset_index.read_index(run)
    for record in dataset_index.read_records(run, content):
        for output in record.outputs:
            for file in output.files:
                assert shard_files.is_there(run.shards, file), file.name
            assert pq.read_schema(f"{run.shards}/{output.parquet.name}").names == content["columns"]
    return list(content["captioners"])


def test_a_new_captioner_replaces_the_dataset_once_all_shards_are_built(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=3, writers=["instructblip", "llava"])
    build(fake)
    before = storage.read_bytes(fake.run.dataset)
    caption(fake, "sharegpt4v", [0, 1])
    waiting = build(fake)
    assert waiting.built == 2 and "captions by sharegpt4v of 1 shard (00002)" in waiting.failed[0]
    assert storage.read_bytes(fake.run.dataset) == before and len(check_whole(fake.run)) == 2
    assert [problem.what.partition(",")[0] for problem in verify(fake.run)] == ["built"] * 2
    caption(fake, "sharegpt4v", [2])
    summary = build(fake)
    assert (summary.built, summary.skipped, summary.failed) == (1, 2, [])
    assert check_whole(fake.run) == list(WRITERS)
    assert verify(fake.run) == []
    (suffix,) = {output["tar"]["name"].partition("-")[2][5:] for output in dataset_index.read_index(fake.run)["shards"]}
    names = [name for name in storage.list_names(fake.run.shards) if name.startswith("train-")]
    assert len(names) == 6 and suffix.startswith("-") and f"train-{{00000..00002}}{suffix}" in card(fake.run)
    assert len(dataset_index.done_shards(fake.run)) == 3
    assert build(fake).nothing_to_do


def test_captions_of_changed_images_are_reported_until_they_are_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake = fake_run.make(tmp_path, shards=7)
    build(fake)
    for number in range(7):
        rows = fake_run.captions_of(fake.run, "llava", number)
        rows[number]["sha256"] = "f" * 64
        fake_run.write_captions(fake.run, "llava", number, rows)
    for _ in range(2):
        caplog.clear()
        assert shard(fake.manifest, fake.run).failed == []
        files = ", ".join(fake.run.caption_shard("llava", number) for number in range(5))
        assert caplog.messages[-1] == (
            "7 captions are left out (image_changed): their images were downloaded again since and have changed. "
            f"To caption them again, remove {files} (and 2 more, see `dropped_texts` in {fake.run.dataset}), "
            f"run `lotlip-data recaption {fake.run.url}`, then `lotlip-data shard {fake.run.url}`"
        )
    assert (dataset_index.read_index(fake.run)["samples"], verify(fake.run)) == (7 * 8, [])
    caption(fake, "llava", range(7))
    caplog.clear()
    assert shard(fake.manifest, fake.run).built == 7
    assert not any("image_changed" in line for line in caplog.messages)
    assert dataset_index.read_index(fake.run)["dropped_texts"] == {}


def _digest(row: dict[str, Any]) -> str:
    """The hash of a row with the prompt `Describe {raw} of {source}.`, computed as the page on the format says."""
    content = json.dumps({"raw": row["texts"][0], "source": row["sources"][0]}, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def _claim(run: Run, name: str, prompt: str) -> None:
    settings = {"id": f"{name}@1", "name": name, "prompt": prompt}
    storage.replace(run.captioner_settings(name), artifacts.encode_json(settings))


def test_captions_whose_raw_text_has_changed_are_reported_until_they_are_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The hash says that another raw text, or the same text of another source, was filled in."""
    fake = fake_run.make(tmp_path, shards=2)
    _claim(fake.run, "llava", "Describe {raw} of {source}.")
    rows = fake_run.captions_of(fake.run, "llava", 1)
    images = {row["uid"]: row for row in fake_run.fetched_rows(fake.run, 1)}
    for row in rows:
        row["fields_sha256"] = _digest(images[row["uid"]])
    fake_run.write_captions(fake.run, "llava", 1, rows)
    assert build(fake).failed == [] and not any("prompt_changed" in line for line in caplog.messages)
    assert verify_run(fake.run).notes == []
    for row, change in zip(rows, ({"texts": ["another"]}, {"sources": ["another"]}), strict=False):
        row["fields_sha256"] = _digest(images[row["uid"]] | change)
    rows[2]["sha256"] = "f" * 64
    fake_run.write_captions(fake.run, "llava", 1, rows)
    assert build(fake).failed == []
    remedy = (
        f"To caption them again, remove {fake.run.caption_shard('llava', 1)}, run `lotlip-data recaption "
        f"{fake.run.url}`, then `lotlip-data shard {fake.run.url}`"
    )
    expected = [
        f"1 captions {{}} (image_changed): their images were downloaded again since and have changed. {remedy}",
        "2 captions {} (prompt_changed): their images were downloaded again since, and columns that the prompt has, "
        f"such as the raw text, have changed. {remedy}",
    ]
    assert caplog.messages[-2:] == [line.format("are left out") for line in expected]
    check = verify_run(fake.run)
    assert check.notes == [line.format("are outdated") for line in expected]
    assert check.problems == verify_run(fake.run).problems == []
    dropped = dataset_index.read_index(fake.run)["dropped_texts"]
    assert dropped == {"llava": {"image_changed": 1, "prompt_changed": 2}}


def test_captions_of_releases_without_the_hash_are_taken_as_they_are(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=1)
    _claim(fake.run, "llava", "Describe {raw}.")
    url = fake.run.caption_shard("llava", 0)
    storage.replace(url, artifacts.encode_parquet(pq.read_table(url).drop_columns("fields_sha256")))
    assert build(fake).failed == []
    assert dataset_index.read_index(fake.run)["dropped_texts"] == {}
    check = verify_run(fake.run)
    assert check.notes == [] == check.problems


@pytest.mark.parametrize("dataset_json", ["is there", "was removed"])
def test_shards_of_earlier_settings_need_no_action(tmp_path: Path, dataset_json: str) -> None:
    """Shards of an abandoned change of settings, and shards that a lost dataset.json named."""
    fake = fake_run.make(tmp_path, shards=2)
    other = fake_run.make_manifest(sub_captions="authors")
    if dataset_json == "was removed":
        shard(other, fake.run)
        storage.remove(fake.run.dataset)
        build(fake)
    else:
        build(fake)
        rows = fake_run.captions_of(fake.run, "llava", 1)
        storage.remove(fake.run.caption_shard("llava", 1))
        assert shard(other, fake.run).failed
        fake_run.write_captions(fake.run, "llava", 1, rows)
        build(fake)
    assert len(dataset_index.done_shards(fake.run)) > 2 and build(fake).nothing_to_do
    assert verify(fake.run) == []


def test_a_dataset_of_an_earlier_release_is_built_again_and_equal_files_stay(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=2)
    recipe = stage.recipe_of(fake.run, fake.manifest)
    earlier = dataclasses.replace(recipe, revision=recipe.revision - 1)
    publish.publish(fake.run, fake.manifest, earlier, [fake_run.build(fake.run, earlier, number) for number in (0, 1)])
    before = dataset_index.read_index(fake.run)
    times = [Path(fake.run.shards, entry["tar"]["name"]).stat().st_mtime_ns for entry in before["shards"]]
    assert (build(fake).built, verify(fake.run)) == (2, [])
    after = dataset_index.read_index(fake.run)
    assert after["shards"] == before["shards"] and after["recipe"] != before["recipe"]
    assert [Path(fake.run.shards, entry["tar"]["name"]).stat().st_mtime_ns for entry in after["shards"]] == times


def test_shards_of_a_lost_dataset_json_need_no_action_after_a_change(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=2)
    build(fake)
    storage.remove(fake.run.dataset)
    rows = fake_run.captions_of(fake.run, "llava", 1)
    rows[0] |= {"text": "Something else. Entirely."}
    fake_run.write_captions(fake.run, "llava", 1, rows)
    build(fake)
    assert len(dataset_index.done_shards(fake.run)) == 3 and build(fake).nothing_to_do
    assert verify(fake.run) == []


def card(run: Run) -> str:
    return storage.read_bytes(f"{run.shards}/README.md").decode()


def test_only_the_shard_with_changed_captions_is_built_again(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=3)
    build(fake)
    kept = dataset_index.read_index(fake.run)["shards"]
    rows = fake_run.captions_of(fake.run, "llava", 1)
    rows[0] |= {"text": "Something else. Entirely."}
    fake_run.write_captions(fake.run, "llava", 1, rows)
    summary = build(fake)
    assert (summary.built, summary.skipped) == (1, 2)
    new = dataset_index.read_index(fake.run)["shards"]
    assert [new[0], new[2]] == [kept[0], kept[2]] and new[1]["tar"]["name"] != kept[1]["tar"]["name"]
    assert not Path(fake.run.shards, kept[1]["tar"]["name"]).exists()
    assert verify(fake.run) == []


def test_settings_may_change_and_change_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake = fake_run.make(tmp_path, shards=2)
    build(fake)
    before = dataset_index.read_index(fake.run)["shards"]
    caplog.clear()
    other = fake_run.make_manifest(sub_captions="authors", clean={"max_words": 4})
    assert shard(other, fake.run).built == 2
    assert caplog.messages[0] == (
        "dataset settings changed (sub_captions was punkt, is authors; max_words was None, is 4): "
        "affected shards are built again"
    )
    assert dataset_index.read_index(fake.run)["sub_captions"] == "authors" and verify(fake.run) == []
    assert build(fake).built == 2
    assert dataset_index.read_index(fake.run)["shards"] == before and verify(fake.run) == []


def test_files_of_an_abandoned_rewrite_are_removed_once_unchanged_for_a_day(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Not earlier, because another driver may be writing. Files of the dataset and of the user always stay."""
    began = time.time()
    fake = fake_run.make(tmp_path, shards=2)
    build(fake)
    before = {name: storage.read_bytes(f"{fake.run.url}/{name}") for name in storage.list_below(fake.run.url)}
    rows = fake_run.captions_of(fake.run, "llava", 1)
    storage.remove(fake.run.caption_shard("llava", 1))  # so that the rewrite cannot be completed
    other = fake_run.make_manifest(sub_captions="authors", min_long_texts=3)
    assert len(shard(other, fake.run).failed) == 1
    fake_run.write_captions(fake.run, "llava", 1, rows)
    for name in ("mine.tar", "notes.txt"):
        storage.create(f"{fake.run.shards}/{name}", b"of the user's")
    assert build(fake).built <= 1
    left = storage.list_below(fake.run.url)
    assert len(set(left) - set(before)) >= 3 + 2, "a marker, a tar, a Parquet file, and the files of the user"
    alone = Run.at(str(shutil.copytree(fake.run.url, tmp_path_factory.mktemp("copy") / "without what made it")))
    for url in (alone.manifest, alone.captions):
        storage.remove(url)
    assert [problem.where[-9:] for problem in verify(alone)] == ["/mine.tar", "notes.txt"]
    named = publish.paths_of(fake.run, dataset_index.read_records(fake.run, dataset_index.read_index(fake.run)))
    assert remove_orphans(fake.run, named, now=began + STILL_SECONDS - 60) == 0
    assert storage.list_below(fake.run.url) == left
    assert remove_orphans(fake.run, named, now=time.time() + STILL_SECONDS + 60) >= 3
    kept = {*named, "shards/mine.tar", "shards/notes.txt"}
    now_there = {name for name in storage.list_below(fake.run.url) if name.startswith(("shards/", "quarantine/shard/"))}
    assert now_there == kept | {f"shards/{name}" for name in ("dataset.json", "README.md", "croissant.json")}
    assert check_whole(fake.run) and [problem.where[-9:] for problem in verify(fake.run)] == ["/mine.tar", "notes.txt"]


def test_killed_at_any_step_the_dataset_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill before every change of the storage while a captioner and a shard are added; check, and run again."""
    fake = fake_run.make(tmp_path / "run", shards=2, images=3, writers=["instructblip", "llava"], min_long_texts=2)
    lost = fake_run.captions_of(fake.run, "llava", 0)
    lost[0] |= {"text": None, "error": "poison"}
    fake_run.write_captions(fake.run, "llava", 0, lost)
    build(fake)
    fake_run.write_images(fake.run, 2, [3_900_000])
    for name in ("instructblip", "llava", "sharegpt4v"):
        caption(fake, name, ledger.fetched_shards(fake.run) if name == "sharegpt4v" else [2])
    steps, seen = 0, set()
    while True:
        run = Run.at(str(shutil.copytree(fake.run.url, tmp_path / f"killed-{steps}")))
        with monkeypatch.context() as patch:
            kill_at(steps, patch)
            try:
                build(fake, run)
            except Killed:
                ended = False
            else:
                ended = True
        seen.add(len(check_whole(run)))
        assert build(fake, run).failed == []
        assert (len(check_whole(run)), dataset_index.read_index(run)["samples"], verify(run)) == (3, 7, [])
        shutil.rmtree(run.url)
        steps += 1
        if ended:
            break
    assert seen == {2, 3} and steps >= 20
