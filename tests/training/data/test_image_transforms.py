"""Pixels equal timm's in the authors' evaluation (crop_pct 1), and a tower's own preprocessing is used."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import functional

from lotlip_data.training.data.image_transforms import ImageTransform, load_transform, random_crop


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (300, 200), (201, 335), (500, 77), (100, 101), (224, 399)])
def test_pixels_equal_timms_bit_for_bit(size, interpolation):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    expected = create_transform((3, 224, 224), mean=mean, std=std, interpolation=interpolation, crop_pct=1.0)(picture)
    assert torch.equal(ImageTransform(224, mean, std, interpolation)([picture])[0], expected)


def test_the_preprocessing_is_read_from_both_kinds_of_folders(tmp_path):
    assert load_transform(str(tmp_path), 224) == ImageTransform(224, (0.5,) * 3, (0.5,) * 3, "bicubic")
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert load_transform(str(tmp_path), 96) == ImageTransform(96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    timm = {"mean": [0.7, 0.7, 0.7], "std": [0.8, 0.8, 0.8], "interpolation": "bicubic", "crop_pct": 0.9}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": timm}))
    assert load_transform(str(tmp_path), 96) == ImageTransform(96, (0.7,) * 3, (0.8,) * 3, "bicubic")


def test_an_unknown_interpolation_is_rejected():
    with pytest.raises(ValueError, match="interpolation: 'lanczos' is not one of bicubic, bilinear"):
        ImageTransform(224, interpolation="lanczos")


@pytest.mark.parametrize("size", [(640, 480), (97, 333), (224, 224), (1000, 20)])
def test_a_random_crop_equals_torchvisions_for_its_rectangle_and_keeps_to_the_scale(size, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    transform, crop, boxes = ImageTransform(64), Image.Image.crop, []
    monkeypatch.setattr(Image.Image, "crop", lambda image, box: boxes.append(box) or crop(image, box))
    for seed in range(50):
        cropped = random_crop(picture, transform, (0.9, 1.0), np.random.default_rng(seed))
        left, top, right, bottom = boxes[-1]
        width, height = right - left, bottom - top
        assert left >= 0 <= top and right <= size[0] and bottom <= size[1]
        assert 3 / 4 - 0.02 <= width / height <= 4 / 3 + 0.02
        if max(size) / min(size) < 4 / 3:
            assert 0.89 <= width * height / (size[0] * size[1]) <= 1
        expected = functional.resized_crop(
            picture, top, left, height, width, [64, 64], functional.InterpolationMode.BICUBIC
        )
        assert np.array_equal(np.asarray(cropped), np.asarray(expected))
    assert len(set(boxes)) > (10 if max(size) / min(size) < 4 / 3 else 0)
