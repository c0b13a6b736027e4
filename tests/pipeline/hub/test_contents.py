"""A repository gets the documents of the dataset, without secrets, and its statistics."""

import json
import shutil
from pathlib import Path

import pytest

from lotlip_data.manifests.digests import check_json
from lotlip_data.manifests.run_layout import DATASET_JSON, Run
from lotlip_data.pipeline.hub.publication import publish
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.hub.conftest import NAME, assert_holds, write_dataset
from tests.support.fake_dataset_hub import FakeDatasetHub


def test_statistics_are_computed_once_per_dataset(
    hub: FakeDatasetHub, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run, NAME, with_statistics=False)
    assert "statistics.json" not in hub.repositories[NAME].files()
    publish(run, NAME)
    monkeypatch.setattr("lotlip_data.pipeline.hub.contents.dataset_stats", lambda run: pytest.fail("computed again"))
    publish(run, "org/other")
    assert hub.repositories["org/other"].files() == hub.repositories[NAME].files()


def test_secrets_in_the_urls_of_lists_are_not_published(
    hub: FakeDatasetHub, fake: fake_run.FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    (source,) = fake.manifest.sources
    files = ("https://user:pass@lists.test/a.csv", "https://lists.test/b.csv?X-Amz-Signature=abc", "/lists/c.csv?sig=1")
    secret = fake.manifest.model_copy(update={"sources": (source.model_copy(update={"files": files}),)})
    write_dataset(fake.run, secret)
    publish(fake.run, NAME)
    published = hub.repositories[NAME].files()[DATASET_JSON]
    (source_entry,) = json.loads(published)["manifest"]["sources"]
    assert source_entry["files"] == ["https://lists.test/a.csv", "https://lists.test/b.csv", "/lists/c.csv?sig=1"]
    assert check_json(published)
    assert "without the passwords and signatures in the URLs of lists of web" in caplog.text
    assert not publish(fake.run, NAME).has_changes


def test_a_dataset_without_its_run_is_published(hub: FakeDatasetHub, run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.shards, tmp_path / "copy" / "shards")
    publish(Run.at(str(tmp_path / "copy")), NAME)
    assert_holds(hub.repositories[NAME], run)
