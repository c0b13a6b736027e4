"""The card of a repository shows how far a run is, and keeps everything else that it says."""

import json
from pathlib import Path

import yaml
from typer.testing import CliRunner

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.hub.progress_card import END, START, Progress, publish_progress, with_progress
from lotlip_data.pipeline.hub.publication import publish
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.hub.conftest import NAME, assert_holds
from tests.support.fake_dataset_hub import FakeDatasetHub


def test_a_run_without_a_dataset_gets_a_card_that_the_dataset_replaces(
    hub: FakeDatasetHub, fake: fake_run.FakeRun, tmp_path: Path
) -> None:
    url, _ = publish_progress(fake.run, NAME, private=True)
    repository = hub.repositories[NAME]
    card = repository.files()["README.md"].decode()
    assert repository.private and yaml.safe_load(card.split("---\n")[1])["viewer"] is False
    assert "stage     name" in card and fake.run.url not in card
    assert "endpoint?url=" in card and f"{url}/resolve/main/progress.json".rpartition("/")[2] in card
    badge = json.loads(repository.files()["progress.json"])
    assert (badge["schemaVersion"], badge["label"]) == (1, "lotlip-data")
    publish(fake.run, NAME)
    assert_holds(repository, fake.run)


def test_the_progress_changes_in_its_place_and_the_card_around_it_stays() -> None:
    card = "---\nlicense: mit\n---\n# Mine\n\nText.\n"
    first = with_progress(card, Progress("captions", 0.4, ["40 of 100"]), "https://hub.test/p.json")
    second = with_progress(first, Progress("captions", 0.6, ["60 of 100"]), "https://hub.test/p.json")
    assert "captions 60%" in second and "40 of 100" not in second
    before, _, rest = second.partition(START)
    assert before + rest.partition(END)[2].removeprefix("\n") == card.replace("---\n# Mine", "---\n\n# Mine")


def test_it_is_repeated_until_the_dataset_exists_and_commits_only_news(
    hub: FakeDatasetHub, fake: fake_run.FakeRun
) -> None:
    captions = fake.run.caption_shard("llava", 2)
    content = storage.read_bytes(captions)
    storage.remove(captions)
    waits = list[float]()

    def wait(seconds: float) -> None:
        waits.append(seconds)
        assert len(waits) < 4
        if len(waits) == 2:
            storage.replace(captions, content)

    _, progress = publish_progress(fake.run, NAME, every=5, wait=wait)
    assert waits == [300, 300] and progress.is_complete
    assert hub.repositories[NAME].messages == ["initial commit", "Progress: captions 88%", "Progress: complete"]


def test_the_command_writes_the_card(hub: FakeDatasetHub, run: Run) -> None:
    ended = CliRunner().invoke(app, ["publish", run.url, NAME, "--progress"])
    assert ended.exit_code == 0 and f"the card of {hub.url}/datasets/{NAME} shows the progress" in ended.output
    for options in (["--every", "5"], ["--progress", "--captions-only"]):
        assert CliRunner().invoke(app, ["publish", run.url, NAME, *options]).exit_code == 2
