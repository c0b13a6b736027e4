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


def test_secrets_in_the_urls_of_the_manifest_are_not_published(
    hub: FakeDatasetHub, fake: fake_run.FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    public = {
        "https://user:hush@lists.test/a.csv": "https://lists.test/a.csv",
        "https://hush@lists.test/b.csv": "https://lists.test/b.csv",
        "https://lists.test/c.csv?v=1&X-Amz-Signature=hush": "https://lists.test/c.csv",
        'https://lists.test/"d".csv?apikey=hush': 'https://lists.test/"d".csv',
        "simplecache::https://user:hush@lists.test/e.csv": "simplecache::https://lists.test/e.csv",
        "https://lists.test/f.csv?v=1": "https://lists.test/f.csv?v=1",
        "/lists/g.csv?sig=1": "/lists/g.csv?sig=1",
    }
    table = {"format": "image-folder", "files": ["/images"], "table": "https://user:hush@lists.test/t.csv"}
    sources = [{"name": "web", "files": list(public), "format": "csv"}, {"name": "folder"} | table]
    settings = fake.manifest.model_dump(exclude_unset=True) | {"sources": sources}
    settings["clean"] = {"evaluation_sets": ["https://lists.test/x.tar?sig=hush"]}  # the card names it too
    write_dataset(fake.run, fake_run.Manifest.model_validate(settings))
    publish(fake.run, NAME)
    published = hub.repositories[NAME].files()
    assert [path for path, data in published.items() if b"hush" in data] == []
    web, folder = json.loads(published[DATASET_JSON])["manifest"]["sources"]
    assert web["files"] == list(public.values())
    assert folder["table"] == "https://lists.test/t.csv"
    assert check_json(published[DATASET_JSON])
    assert "without the passwords and signatures in https://lists.test/a.csv and 6 other URLs" in caplog.text
    assert not publish(fake.run, NAME).has_changes


def test_a_dataset_without_its_run_is_published(hub: FakeDatasetHub, run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.shards, tmp_path / "copy" / "shards")
    publish(Run.at(str(tmp_path / "copy")), NAME)
    assert_holds(hub.repositories[NAME], run)
