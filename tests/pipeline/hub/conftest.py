"""A dataset and a hub on loopback, which stores large files by the LFS protocol."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import DATASET_JSON, Run
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset.metadata import Recipe
from lotlip_data.pipeline.dataset.publish import VIEWS
from lotlip_data.pipeline.dataset.publish import publish as write_index
from lotlip_data.synthetic.caption_writers import WRITERS
from tests.pipeline import run_fixture as fake_run
from tests.support.fake_dataset_hub import TOKEN, FakeDatasetHub, Repository, fake_dataset_hub

SHARDS, IMAGES = 3, 6
NAME = "org/captions"
VIEW_NAMES = {*VIEWS, DATASET_JSON, "statistics.json", ".gitattributes"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDatasetHub]:
    """The hub that this process and its child processes use."""
    from huggingface_hub import constants

    with fake_dataset_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name, value in {"HF_ENDPOINT": running.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}.items():
            monkeypatch.setenv(name, value)
        yield running


def write_dataset(run: Run, manifest: fake_run.Manifest, version: str = "1") -> None:
    """Write the dataset of a run, or write it again with other captions of version `version`."""
    recipe = Recipe({name: f"{name}@{version}" for name in WRITERS}, Filters.of(manifest))
    write_index(run, manifest, recipe, [fake_run.build(run, recipe, shard) for shard in range(SHARDS)])


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> fake_run.FakeRun:
    """A run with a dataset of which both splits have files."""
    fake = fake_run.make(tmp_path_factory.mktemp("template") / "run", shards=SHARDS, images=IMAGES, validation=0.3)
    write_dataset(fake.run, fake.manifest)
    return fake


@pytest.fixture
def fake(template: fake_run.FakeRun, tmp_path: Path) -> fake_run.FakeRun:
    """A copy of the run, to change."""
    shutil.copytree(template.run.url, tmp_path / "run")
    return replace(template, run=Run.at(str(tmp_path / "run")))


@pytest.fixture
def run(fake: fake_run.FakeRun) -> Run:
    return fake.run


def shard_names(run: Run, endings: tuple[str, ...] = (".tar", ".parquet")) -> set[str]:
    """The names of the files of a run's dataset."""
    return {name for name in storage.list_names(run.shards) if name.endswith(endings)}


def change_captions(fake: fake_run.FakeRun, *shards: int) -> None:
    """Write caption shards again with other texts, and the dataset."""
    text = "Another text. It has two sentences."
    for shard in shards:
        rows = [row | {"text": text} for row in fake_run.captions_of(fake.run, "llava", shard)]
        fake_run.write_captions(fake.run, "llava", shard, rows)
    write_dataset(fake.run, fake.manifest)


def assert_holds(repository: Repository, run: Run, *, branch: str = "main") -> None:
    """Assert that a branch has the files of the run's dataset, byte by byte, and no others."""
    files = repository.files(branch)
    names = shard_names(run)
    assert set(files) == names | VIEW_NAMES
    for name in (*names, *VIEWS, DATASET_JSON):
        assert files[name] == Path(run.shards, name).read_bytes(), name


def assert_all_readable(repository: Repository) -> None:
    """Assert for every commit that its index names only files that it has, with the contents that the index says."""
    for commit in repository.commits.values():
        files = {path: data for path, (data, _) in commit.items()}
        if DATASET_JSON in files:
            _assert_readable(files)


def _assert_readable(files: dict[str, bytes]) -> None:
    front_matter = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    (config,) = front_matter["configs"]
    data_files = [path for split in config["data_files"] for path in split["path"]]
    assert data_files and set(data_files) <= set(files)
    content = json.loads(files[DATASET_JSON])
    for entry in content["shards"] + content["validation"]:
        for kind in ("tar", "parquet"):
            assert hashlib.sha256(files[entry[kind]["name"]]).hexdigest() == entry[kind]["sha256"]
