"""Features of images are computed once: scorers with one model share them, and so does a training with its tower."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats import score_file
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import stages
from lotlip_data.pipeline.scoring import shards
from lotlip_data.training.config import make_config
from lotlip_data.training.data.dataset import open_dataset
from lotlip_data.training.data.feature_cache import FeatureCache
from lotlip_data.training.models.lotlip import LoTLIP, load_model
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.run_fixture import FakeRun
from tests.pipeline.scoring import scorers
from tests.pipeline.scoring.test_stage import edit
from tests.training.run_fixture import write_towers

without_ray = scorers.without_ray
WRITERS = ("llava", "sharegpt4v")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    towers = write_towers(folder / "towers")
    load_model(make_config(**towers, context_length=64)).save(str(folder / "model"))
    return str(folder / "model")


@pytest.fixture
def fake(tmp_path: Path, model: str, without_ray: None, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    made = fake_run.make(tmp_path / "run", shards=2, writers=WRITERS)
    head = tmp_path / "head.npz"
    width = LoTLIP.load(model).towers.image.dim
    np.savez(head, weight=np.ones((1, width), np.float32), bias=np.zeros(1, np.float32))
    classifier = {"kind": "classifier", "model": model, "options": {"head": str(head)}}
    edit(made.run, scores=[{"kind": "similarity", "model": model}, classifier])
    scorers.use_real_scorers(monkeypatch)
    return made


def refuse(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("an image is read again")


def scores(run: Run, name: str) -> list[float]:
    """All scores of texts and sub-captions, in order."""
    files = [file for file in storage.list_names(run.scorer(name)) if file.endswith(".parquet")]
    tables = [score_file.read_scores(run, name, file) for file in files]
    texts = [text for table in tables for texts in table["texts"].to_pylist() for text in texts]
    return [value for text in texts for value in (text["score"], *text["pieces"])]


def test_a_second_scorer_with_the_model_and_new_captions_read_no_image(
    fake: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stages.score(fake.run, ["similarity"]).failed == []
    before = scores(fake.run, "similarity")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "fetched_images", refuse)
        assert stages.score(fake.run, ["classifier"]).failed == []
        shutil.rmtree(fake.run.scorer("similarity"))
        assert stages.score(fake.run, ["similarity"]).failed == []
    assert len(before) > 100
    assert scores(fake.run, "similarity") == pytest.approx(before, abs=1e-6), "whether features were stored or not"


def test_a_training_with_the_tower_takes_the_features_of_the_scorer(
    fake: FakeRun, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.score(fake.run)
    assert stages.shard(fake.run).failed == []
    loaded, dataset = LoTLIP.load(model), open_dataset(fake.run.url)
    cache = FeatureCache(dataset, loaded.towers.image, loaded.transform)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_compute", refuse)
        cache.fill()
    shared = [cache.shard(index) for index in range(cache.shards)]
    shutil.rmtree(cache.folder)
    cache.fill()
    fresh = FeatureCache(dataset, loaded.towers.image, loaded.transform)
    for index, features in enumerate(shared):
        np.testing.assert_allclose(features, fresh.shard(index), rtol=2e-3, atol=1e-3)  # a step of float16
