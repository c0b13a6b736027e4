"""A repository on the Hub holds the dataset, and nothing else of it."""

import json

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.hub.publication import publish
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.hub.conftest import IMAGES, NAME, SHARDS, VIEW_NAMES, assert_holds, change_captions, shard_names
from tests.support.fake_dataset_hub import FakeDatasetHub


def test_a_repository_holds_the_dataset_and_a_second_publication_sends_nothing(hub: FakeDatasetHub, run: Run) -> None:
    first = publish(run, NAME)
    repository = hub.repositories[NAME]
    assert_holds(repository, run)
    assert len(first.commits) == 1 and not repository.private
    assert first.url == f"{hub.url}/datasets/{NAME}"
    assert set(first.uploaded) == shard_names(run) | VIEW_NAMES - {".gitattributes"}
    assert json.loads(repository.files()["statistics.json"])["images"] == SHARDS * IMAGES

    hub.requests.clear()
    again = publish(run, NAME)
    assert not again.has_changes and len(repository.commits) == 2
    assert {request.split()[0] for request in hub.requests} == {"GET"}


def test_images_that_are_no_longer_published_are_removed_and_the_history_is_named(
    hub: FakeDatasetHub, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    publish(run, NAME)
    changed = publish(run, NAME, images=False)
    assert set(changed.deleted) == shard_names(run, (".tar",)) and len(changed.commits) == 1
    assert f"the earlier commits still have {len(changed.deleted)} tars with images" in caplog.text
    assert not any(path.endswith(".tar") for path in hub.repositories[NAME].files())
    assert not any(path.endswith(".parquet") for path in changed.uploaded)
    publish(run, NAME)
    assert_holds(hub.repositories[NAME], run)


def test_the_licences_of_published_images_are_named(
    hub: FakeDatasetHub, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    publish(run, NAME, images=False)
    assert "licence" not in caplog.text
    publish(run, NAME)
    assert (
        f"{SHARDS * IMAGES} images are published, under the licences of their sources (web: licence not" in caplog.text
    )


def test_an_outdated_dataset_is_named_and_published_as_it_is(
    hub: FakeDatasetHub, fake: fake_run.FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    fake_run.claim_captioner(fake.run, "later")
    fake_run.write_captions(fake.run, "later", 0, fake_run.captions_of(fake.run, "llava", 0))
    publish(fake.run, NAME)
    assert "the dataset is outdated and is published as it is: captions by later are not in it" in caplog.text
    assert_holds(hub.repositories[NAME], fake.run)


def test_a_dry_run_names_the_changes_and_makes_none(hub: FakeDatasetHub, fake: fake_run.FakeRun) -> None:
    plan = publish(fake.run, NAME, dry_run=True)
    assert hub.repositories == {} and set(plan.uploaded) > shard_names(fake.run)
    assert "would be uploaded to" in plan.lines()[0]
    publish(fake.run, NAME)
    before = shard_names(fake.run)
    change_captions(fake, 0)
    hub.requests.clear()
    plan = publish(fake.run, NAME, dry_run=True)
    assert set(plan.deleted) == before - shard_names(fake.run) and "would be removed" in plan.lines()[1]
    assert {request.split()[0] for request in hub.requests} == {"GET"}


def test_a_branch_is_created_and_the_main_one_stays(hub: FakeDatasetHub, run: Run) -> None:
    publish(run, NAME, branch="release/v2", message="Version 2")
    repository = hub.repositories[NAME]
    assert set(repository.files()) == {".gitattributes"}
    assert_holds(repository, run, branch="release/v2")
    assert repository.messages[-1] == "Version 2"


def test_a_private_repository_is_private_from_its_first_moment(hub: FakeDatasetHub, run: Run) -> None:
    publish(run, NAME, private=True)
    assert hub.repositories[NAME].private
    hub.repositories[NAME].private = False
    with pytest.raises(UserError, match=r"exists and is public.*Make it private in its settings"):
        publish(run, NAME, private=True)
