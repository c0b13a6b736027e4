"""Features are stored as the tower computes them, or are refused: none is stored as inf or nan."""

import pathlib

import numpy as np
import pytest
import torch

from lotlip_data.manifests.errors import UserError
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


def test_stored_features_that_are_not_finite_are_damaged(cache):
    cache.compute(0)
    (file,) = pathlib.Path(cache.folder).iterdir()
    features = np.load(file)["features"]
    features[1, 2] = np.inf
    np.savez(file, features=features)
    with pytest.raises(DataError, match=r"inf or nan\. Remove it"):
        cache.shard(0)
