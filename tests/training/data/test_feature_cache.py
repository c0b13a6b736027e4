"""Features are stored as the tower computes them, or are refused: none is stored as inf or nan."""

import pathlib

import numpy as np
import pytest
import torch

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.data import feature_cache
from lotlip_data.training.data.dataset import DataError, open_dataset
from lotlip_data.training.data.feature_cache import FeatureCache
from lotlip_data.training.data.image_transforms import load_transform
from lotlip_data.training.models.pretrained import load_image_tower
from tests.training.run_fixture import write_run, write_towers


@pytest.fixture
def cache(tmp_path):
    run, towers = write_run(tmp_path / "run", (3,)), write_towers(tmp_path / "towers")
    tower = load_image_tower(towers["image_tower"])
    return FeatureCache(open_dataset(run), tower, load_transform(towers["image_tower"], 96))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (1e6, "a feature is .*float16, at most 65,504. Set `images: pixels`"),
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
    ],
)
def test_features_that_float16_cannot_hold_are_refused_and_not_stored(cache, weight, message):
    with torch.no_grad():
        cache._tower.vit.layernorm.weight[3] = weight
    with pytest.raises(UserError, match=f"image tower '.*vit': .*{message}"):
        cache.compute(0)
    assert cache.missing() == [0]


@pytest.fixture
def half(monkeypatch):
    """As on a GPU, products are in float16."""
    monkeypatch.setattr(feature_cache, "in_16_bit", lambda device: torch.autocast("cpu", torch.float16))


def features_of(cache):
    (file,) = pathlib.Path(cache.folder).iterdir()
    features = np.load(file)["features"]
    file.unlink()
    return features


def test_features_in_16_bit_are_close_to_those_in_32(cache, monkeypatch):
    cache.compute(0)
    exact = features_of(cache)
    monkeypatch.setattr(feature_cache, "in_16_bit", lambda device: torch.autocast("cpu", torch.float16))
    cache.compute(0)
    close = features_of(cache)
    assert not np.array_equal(close, exact)
    np.testing.assert_allclose(close, exact, atol=0.01 * np.abs(exact).max())


def test_what_exceeds_the_range_of_16_bit_is_computed_in_32(cache, half):
    """Pixels times these weights are about 1e6 before the first normalization, and float16 ends at 65,504."""
    with torch.no_grad():
        cache._tower.vit.embeddings.patch_embeddings.projection.weight.mul_(1e7)
    cache.compute(0)
    assert np.isfinite(features_of(cache)).all()


def test_the_order_of_images_does_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "BATCH_IMAGES", 4)
    run, towers = write_run(tmp_path / "run", (11,)), write_towers(tmp_path / "towers")
    tower, transform = load_image_tower(towers["image_tower"]), load_transform(towers["image_tower"], 96)
    stored = []
    for threads in (1, 5):
        cache = FeatureCache(open_dataset(run), tower, transform, threads=threads)
        cache.compute(0)
        stored.append(features_of(cache))
    np.testing.assert_array_equal(*stored)
    assert len(np.unique(stored[0], axis=0)) == 11


def test_stored_features_that_are_not_finite_are_damaged(cache):
    cache.compute(0)
    (file,) = pathlib.Path(cache.folder).iterdir()
    features = np.load(file)["features"]
    features[1, 2] = np.inf
    np.savez(file, features=features)
    with pytest.raises(DataError, match=r"inf or nan\. Remove it"):
        cache.shard(0)
