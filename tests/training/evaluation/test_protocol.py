"""Protocols state equal preprocessing in equal words, and name what differs."""

import pytest

from lotlip_data.training.evaluation.protocol import (
    describe_preprocessing,
    open_clip_preprocessing,
    protocol_differences,
    transformers_preprocessing,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OPEN_CLIP = {"size": 224, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
TRANSFORMERS = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_resize": True,
    "do_center_crop": True,
    "do_normalize": True,
    "resample": 3,
    "image_mean": MEAN,
    "image_std": STD,
}


def test_equal_preprocessing_of_three_libraries_is_stated_equally():
    expected = {
        "resolution": "224 x 224",
        "resizing": "shorter side, center crop, bicubic",
        "normalisation": "mean 0.4815 0.4578 0.4082, std 0.2686 0.2613 0.2758",
    }
    assert describe_preprocessing((224, 224), "shortest", "bicubic", MEAN, STD) == expected
    assert open_clip_preprocessing(OPEN_CLIP) == transformers_preprocessing(TRANSFORMERS) == expected


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"do_center_crop": False, "size": {"height": 256, "width": 192}}, "resolution", "192 x 256"),
        ({"do_center_crop": False, "size": {"height": 9, "width": 9}}, "resizing", "both sides, stretched, bicubic"),
        ({"size": {"shortest_edge": 256}}, "resizing", "shorter side to 256, bicubic"),
        ({"do_resize": False}, "resizing", "no resizing, bicubic"),
        ({"resample": 2}, "resizing", "shorter side, center crop, bilinear"),
        ({"resample": 0}, "resizing", "shorter side, center crop, nearest"),
        ({"do_normalize": False}, "normalisation", "none"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "normalisation", "mean 0.5, std 0.5"),
    ],
)
def test_other_settings_of_an_image_processor_are_stated(changes, field, value):
    assert transformers_preprocessing(TRANSFORMERS | changes)[field] == value


def test_open_clips_sizes_of_two_sides_are_height_and_width():
    assert open_clip_preprocessing(OPEN_CLIP | {"size": (256, 192)})["resolution"] == "192 x 256"


def test_each_field_that_differs_is_named_with_its_models():
    protocol = {"context_length": 77, "resolution": "224 x 224", "images": 5}
    other = protocol | {"context_length": 248}
    assert protocol_differences({"a": protocol, "b": protocol}) == []
    assert protocol_differences({"a": protocol, "b": other, "c": protocol}) == ["context length 77 (a, c) / 248 (b)"]
    assert protocol_differences({"a": {"images": 5}, "old": {}}) == ["images 5 (a) / not stated (old)"]
