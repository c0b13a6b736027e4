"""Training from pixels: each sample has its own image, the crop depends on seed and sample, and both towers learn."""

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
from lotlip_data.training.models.lotlip import LoTLIP, load_model
from lotlip_data.training.trainer import train
from tests.training.run_fixture import write_run, write_towers

SETTINGS = {"batch": 10, "epochs": 2, "warm_up": 1, "lr": 1e-3, "context_length": 96, "images": "pixels"}


@pytest.fixture(scope="module")
def dataset_and_towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return data.open_dataset(write_run(folder / "run", (12, 8))), write_towers(folder / "towers")


def reader(dataset, **options):
    settings = {"seed": 1, "crop": (0.9, 1.0), "open_shards": 2, "threads": 3, **options}
    return PixelReader(dataset, ImageTransform(96), **settings)


def test_each_row_has_the_image_of_its_row_in_the_parquet_twin(dataset_and_towers):
    dataset, _ = dataset_and_towers
    samples = [(0, shard, row) for shard, count in enumerate((12, 8)) for row in range(count)][::-1]
    pixels = reader(dataset, crop=(1.0, 1.0)).load(samples)
    for sample, loaded in zip(samples, pixels, strict=True):
        key = data.TextReader(dataset, ()).shard(sample[1])[sample[2]]["key"]
        with tarfile.open(dataset.shards[sample[1]].tar_url) as tar:
            image = Image.open(io.BytesIO(tar.extractfile(f"{key}.jpg").read())).convert("RGB")
        # A crop of a whole square image can still lose a row to the random aspect ratio.
        assert (ImageTransform(96)([image])[0] - loaded).abs().mean() < 0.25
        others = [image for other, image in zip(samples, pixels, strict=True) if other != sample]
        nearest = min((ImageTransform(96)([image])[0] - other).abs().mean() for other in others)
        assert (ImageTransform(96)([image])[0] - loaded).abs().mean() < nearest


def test_a_crop_depends_on_seed_and_sample_and_differs_between_epochs(dataset_and_towers):
    dataset, _ = dataset_and_towers
    first = reader(dataset).load([(0, 0, 3), (0, 1, 4)])
    assert torch.equal(first, reader(dataset, threads=1).load([(0, 0, 3), (0, 1, 4)]))
    assert torch.equal(first[1:], reader(dataset).load([(0, 1, 4)]))
    assert not torch.equal(first, reader(dataset).load([(1, 0, 3), (1, 1, 4)]))
    assert not torch.equal(first, reader(dataset, seed=2).load([(0, 0, 3), (0, 1, 4)]))


def test_the_error_for_a_missing_or_truncated_tar_says_what_to_do(tmp_path):
    dataset = data.open_dataset(write_run(tmp_path / "run", (3,)))
    tar = pathlib.Path(dataset.shards[0].tar_url)
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.DataError, match="verify"):
        reader(dataset).load([(0, 0, 0)])
    tar.unlink()
    with pytest.raises(data.DataError, match=r"train-00000\.tar: cannot be read"):
        reader(dataset).load([(0, 0, 0)])


@pytest.mark.parametrize("method", ["lotlip", "lotlip_scratch"])
def test_a_locked_image_tower_stays_and_one_from_scratch_learns(dataset_and_towers, tmp_path, method):
    dataset, towers = dataset_and_towers
    config = make_config(**{**SETTINGS, **towers, "method": method})
    torch.manual_seed(config.seed)
    before = load_model(config).towers.state_dict()
    result = train(config, dataset.url, str(tmp_path / "t"))
    after = LoTLIP.load(result.model).towers.state_dict()
    image = {name for name in before if name.startswith("image.")}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert image & changed == (
        set() if method == "lotlip" else {name for name in image if "key.bias" not in name} & changed
    )
    assert (len(image & changed) > len(image) / 2) == (method == "lotlip_scratch")
    assert len([name for name in changed if name.startswith("text.")]) > 10


def test_image_towers_that_learn_need_pixels_and_fresh_ones_have_to_learn(dataset_and_towers):
    _, towers = dataset_and_towers
    with pytest.raises(ConfigError, match="images: an image tower that learns needs pixels"):
        make_config(**towers, lock_image=False)
    with pytest.raises(ConfigError, match="lock_image: a tower of fresh weights has to learn"):
        make_config(**towers, pretrained_image=False)
    with pytest.raises(ConfigError, match="crop_scale"):
        make_config(**towers, crop_scale=[0.5, 2])


def test_both_towers_of_a_method_from_scratch_have_fresh_weights(dataset_and_towers):
    _, towers = dataset_and_towers
    torch.manual_seed(3)
    fresh = load_model(make_config(**towers, method="clip", context_length=96)).towers.state_dict()
    known = load_model(make_config(**towers, method="lit", context_length=96)).towers.state_dict()
    for name in ("image.vit.embeddings.patch_embeddings.projection.weight", "text.encoder.pooler.dense.weight"):
        assert not torch.equal(fresh[name], known[name])
    assert np.isfinite(fresh["text.proj.weight"].numpy()).all()
