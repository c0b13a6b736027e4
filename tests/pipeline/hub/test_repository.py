"""Lost answers and commits by others change nothing in the result."""

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.hub.publication import publish
from tests.pipeline.hub.conftest import NAME, VIEW_NAMES, assert_holds, shard_names
from tests.support.fake_dataset_hub import FakeDatasetHub, answer


def test_a_commit_whose_answer_is_lost_is_recognised(
    hub: FakeDatasetHub, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.after["POST commit"] = lambda: answer(504)
    publish(run, NAME)
    assert_holds(hub.repositories[NAME], run)
    assert len(hub.repositories[NAME].commits) == 2


def test_a_commit_by_others_in_between_is_not_overwritten(hub: FakeDatasetHub, run: Run) -> None:
    def commit_by_others() -> None:
        repository = hub.repositories[NAME]
        repository.add("main", repository.commits[repository.branches["main"]] | {"LICENSE": (b"x", False)}, "others")

    hub.faults["POST commit"] = [commit_by_others]
    publish(run, NAME)
    files = hub.repositories[NAME].files()
    assert files.pop("LICENSE") == b"x" and set(files) == shard_names(run) | VIEW_NAMES


def test_files_that_the_repository_ignores_are_an_error(hub: FakeDatasetHub, run: Run) -> None:
    hub.ignored = ("train-00000.tar",)
    with pytest.raises(UserError, match=r"its \.gitignore keeps files of the dataset out: train-00000\.tar"):
        publish(run, NAME)
