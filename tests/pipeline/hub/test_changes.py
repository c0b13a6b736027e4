"""Only what differs is uploaded, and each commit is a whole dataset."""

import shutil

import pytest

from lotlip_data.manifests.run_layout import DATASET_JSON, Run
from lotlip_data.pipeline.hub import changes, transfer
from lotlip_data.pipeline.hub.publication import publish
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.hub.conftest import NAME, SHARDS, assert_all_readable, assert_holds, change_captions, shard_names
from tests.support.fake_dataset_hub import FakeDatasetHub


def test_one_changed_shard_is_uploaded_alone_and_its_old_files_go_with_the_same_commit(
    hub: FakeDatasetHub, fake: fake_run.FakeRun
) -> None:
    publish(fake.run, NAME)
    before = shard_names(fake.run)
    change_captions(fake, 1)
    hub.uploads.clear()
    changed = publish(fake.run, NAME)
    after = shard_names(fake.run)
    assert before - after and set(changed.deleted) == before - after
    assert {name for name in changed.uploaded if name.endswith((".tar", ".parquet"))} == after - before
    assert len(hub.uploads) == len(after - before) and set(hub.uploads.values()) == {1}
    assert len(changed.commits) == 1
    assert_holds(hub.repositories[NAME], fake.run)
    assert_all_readable(hub.repositories[NAME])


def test_a_file_with_another_content_under_the_same_name_changes_with_the_index(
    hub: FakeDatasetHub, fake: fake_run.FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(fake.run, NAME)
    shutil.rmtree(fake.run.shards)
    change_captions(fake, 1)
    monkeypatch.setattr(changes, "FILES_PER_COMMIT", 1)
    changed = publish(fake.run, NAME)
    assert changed.deleted == [] and len(changed.commits) == 1
    assert_holds(hub.repositories[NAME], fake.run)
    assert_all_readable(hub.repositories[NAME])


def test_many_files_take_several_commits_of_which_the_last_one_shows_the_dataset(
    hub: FakeDatasetHub, fake: fake_run.FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "FILES_PER_COMMIT", 2)
    monkeypatch.setattr(transfer, "GROUP_FILES", 1)
    first = publish(fake.run, NAME)
    repository = hub.repositories[NAME]
    assert len(first.commits) == -(-len(shard_names(fake.run)) // 2)
    *hidden, shown = [repository.commits[commit] for commit in first.commits]
    assert not any(DATASET_JSON in files or "README.md" in files for files in hidden) and DATASET_JSON in shown
    change_captions(fake, *range(SHARDS))
    assert len(publish(fake.run, NAME).commits) > 1
    assert_holds(repository, fake.run)
    assert_all_readable(repository)


def test_other_files_of_a_repository_stay(hub: FakeDatasetHub, run: Run) -> None:
    publish(run, NAME)
    repository = hub.repositories[NAME]
    others = {
        "LICENSE": (b"x", False),
        "data/train-00000-of-00001.parquet": (b"y", True),
        "old/train-00000.tar": (b"z", True),
    }
    gone = {"train-00009.tar": (b"old", True)}
    repository.add("main", repository.commits[repository.branches["main"]] | others | gone, "by hand")
    assert publish(run, NAME).deleted == ["train-00009.tar"]
    assert {path: repository.files()[path] for path in others} == {path: data for path, (data, _) in others.items()}


def test_small_files_that_the_repository_keeps_in_git_are_compared_too(hub: FakeDatasetHub, run: Run) -> None:
    hub.large = (".tar",)
    publish(run, NAME)
    assert_holds(hub.repositories[NAME], run)
    assert not publish(run, NAME).has_changes
