"""Training from pixels: each sample's own image, cropped by seed and place alone, and towers that both learn."""

import io
import pathlib
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from lotlip_data.training.config import ConfigError, make_config
from lotlip_data.training.data import dataset as data
from lotlip_data.training.data.image_transforms import ImageTransform
from lotlip_data.training.data.pixel_reader import PixelReader
from lotlip_data.training.trainer import train
from tests.training.run_fixture import write_run, write_towers

SETTINGS = {"batch": 10, "epochs": 2, "warm_up": 1, "lr": 1e-3, "context_length": 96, "images": "pixels"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return data.open_dataset(write_run(folder / "run", (12, 8))), write_towers(folder / "towers")


def reader(dataset, **options):
    given = {"seed": 1, "crop": (0.9, 1.0), "open_shards": 2, "threads": 3, **options}
    return PixelReader(dataset, ImageTransform(96), **given)


def test_rows_are_the_images_of_the_parquet_twins_rows(world):
    dataset, _ = world
    places = [(0, shard, row) for shard, count in enumerate((12, 8)) for row in range(count)][::-1]
    pixels = reader(dataset, crop=(1.0, 1.0)).rows(places)
    for place, found in zip(places, pixels, strict=True):
        key = data.TextReader(dataset, ()).shard(place[1])[place[2]]["key"]
        with tarfile.open(dataset.shards[place[1]].tar) as tar:
            image = Image.open(io.BytesIO(tar.extractfile(f"{key}.jpg").read())).convert("RGB")
        # A crop of all of a square image may still lose a row to the random ratio of its sides.
        assert (ImageTransform(96)([image])[0] - found).abs().mean() < 0.25
        others = [one for other, one in zip(places, pixels, strict=True) if other != place]
        nearest = min((ImageTransform(96)([image])[0] - one).abs().mean() for one in others)
        assert (ImageTransform(96)([image])[0] - found).abs().mean() < nearest


def test_a_crop_follows_from_seed_and_place_and_is_new_in_each_epoch(world):
    dataset, _ = world
    first = reader(dataset).rows([(0, 0, 3), (0, 1, 4)])
    assert torch.equal(first, reader(dataset, threads=1).rows([(0, 0, 3), (0, 1, 4)]))
    assert torch.equal(first[1:], reader(dataset).rows([(0, 1, 4)]))
    assert not torch.equal(first, reader(dataset).rows([(1, 0, 3), (1, 1, 4)]))
    assert not torch.equal(first, reader(dataset, seed=2).rows([(0, 0, 3), (0, 1, 4)]))


def test_a_shard_that_is_not_there_or_lacks_an_image_says_what_to_do(tmp_path):
    dataset = data.open_dataset(write_run(tmp_path / "run", (3,)))
    tar = pathlib.Path(dataset.shards[0].tar)
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.DataError, match="verify"):
        reader(dataset).rows([(0, 0, 0)])
    tar.unlink()
    with pytest.raises(data.DataError, match=r"train-00000\.tar: cannot be read"):
        reader(dataset).rows([(0, 0, 0)])


@pytest.mark.parametrize("method", ["lotlip", "lotlip_scratch"])
def test_a_locked_tower_stays_and_one_from_scratch_learns(world, tmp_path, method):
    from lotlip_data.training.models.lotlip import LoTLIP, load_model

    dataset, towers = world
    config = make_config(**{**SETTINGS, **towers, "method": method})
    torch.manual_seed(config.seed)
    before = load_model(config).towers.state_dict()
    found = train(config, dataset.url, str(tmp_path / "t"))
    after = LoTLIP.load(found.model).towers.state_dict()
    image = {name for name in before if name.startswith("image.")}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert image & changed == (
        set() if method == "lotlip" else {name for name in image if "key.bias" not in name} & changed
    )
    assert (len(image & changed) > len(image) / 2) == (method == "lotlip_scratch")
    assert len([name for name in changed if name.startswith("text.")]) > 10


def test_towers_that_learn_need_pixels_and_fresh_ones_have_to_learn(world):
    _, towers = world
    with pytest.raises(ConfigError, match="images: an image tower that learns needs pixels"):
        make_config(**towers, lock_image=False)
    with pytest.raises(ConfigError, match="lock_image: a tower of fresh weights has to learn"):
        make_config(**towers, pretrained_image=False)
    with pytest.raises(ConfigError, match="crop_scale"):
        make_config(**towers, crop_scale=[0.5, 2])


def test_from_scratch_both_towers_are_fresh(world):
    from lotlip_data.training.models.lotlip import load_model

    _, towers = world
    torch.manual_seed(3)
    fresh = load_model(make_config(**towers, method="clip", context_length=96)).towers.state_dict()
    known = load_model(make_config(**towers, method="lit", context_length=96)).towers.state_dict()
    for name in ("image.vit.embeddings.patch_embeddings.projection.weight", "text.encoder.pooler.dense.weight"):
        assert not torch.equal(fresh[name], known[name])
    assert np.isfinite(fresh["text.proj.weight"].numpy()).all()
