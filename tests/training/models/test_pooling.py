"""The feature of an image tower is the one that it was trained for, or the tower is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.data.feature_cache import tower_id
from lotlip_data.training.data.image_transforms import ImageTransform
from lotlip_data.training.models import towers
from lotlip_data.training.models.pooling import POOLINGS, check_features, pooling_of
from lotlip_data.training.models.pretrained import load_image_tower
from lotlip_data.training.models.towers import ImageTower, TextSettings

SIZE = 32
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIZE,
    "patch_size": 8,
}
SWIN = {"image_size": SIZE, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
CONVNEXT = {"image_size": SIZE, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}


def token(outputs: Any) -> Tensor:
    return outputs.last_hidden_state[:, 0]


def pooled(outputs: Any) -> Tensor:
    return outputs.pooler_output


def patch_mean(outputs: Any) -> Tensor:
    return outputs.last_hidden_state.mean(dim=1)


# Class of transformers, its settings, and the feature that its classifier or its training reads.
TOWERS = {
    "ViT": (VIT, token),
    "DeiT": (VIT, token),
    "Dinov2": (VIT, token),
    "Dinov2WithRegisters": (VIT, token),
    "DINOv3ViT": (VIT, token),
    "ViTMSN": (VIT, token),
    "CLIPVision": (VIT, pooled),
    "ChineseCLIPVision": (VIT, pooled),
    "MLCDVision": (VIT, pooled),
    "SiglipVision": (VIT, pooled),
    "Aimv2Vision": (VIT, pooled),
    "Pixio": (VIT, pooled),
    "Beit": (VIT, pooled),
    "Data2VecVision": (VIT, pooled),
    "Swin": (SWIN, pooled),
    "Swinv2": (SWIN, pooled),
    "ConvNext": (CONVNEXT, pooled),
    "ConvNextV2": (CONVNEXT, pooled),
    "DINOv3ConvNext": (CONVNEXT, pooled),
    "IJepa": (VIT, patch_mean),
}


def make(name: str, folder: Path, **settings: Any) -> Any:
    """Save a model with random weights that are not near their initial values. Returns it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model_class = getattr(transformers, f"{name}Model")
    options = {"add_pooling_layer": True} if name == "Data2VecVision" else {}
    model = model_class(config, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_gives_the_feature_that_it_was_trained_for(tmp_path: Path, name: str) -> None:
    settings, expected = TOWERS[name]
    model = make(name, tmp_path, **settings)
    tower = load_image_tower(str(tmp_path))
    pixels = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(tower(pixels), expected(model(pixel_values=pixels)), rtol=0, atol=1e-5)
    assert tower(pixels).shape == (2, tower.dim)


def test_every_known_architecture_is_tested() -> None:
    configs = [getattr(transformers, f"{name}Config") for name in TOWERS]
    assert {config.model_type for config in configs} | {"vit_mae"} == POOLINGS.keys()


@torch.no_grad()
def test_a_masked_autoencoder_reads_all_patches_in_every_call(tmp_path: Path) -> None:
    model = make("ViTMAE", tmp_path, **VIT)
    tower = load_image_tower(str(tmp_path))
    pixels = torch.randn(2, 3, SIZE, SIZE)
    model.config.mask_ratio = 0.0
    torch.testing.assert_close(tower(pixels), token(model(pixel_values=pixels)), rtol=0, atol=1e-5)
    assert torch.equal(tower(pixels), tower(pixels))


@torch.no_grad()
@pytest.mark.parametrize("name", ["CLIP", "ChineseCLIP", "Siglip"])
def test_of_a_model_of_images_and_texts_the_image_tower_is_loaded(tmp_path: Path, name: str) -> None:
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = make(name, tmp_path, text_config=text, vision_config=VIT, projection_dim=32)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    expected = model.vision_model(pixel_values=pixels).pooler_output
    torch.testing.assert_close(load_image_tower(str(tmp_path))(pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, "model_type 'resnet'"),
        ("Siglip2Vision", {**VIT, "num_patches": 16}, "model_type 'siglip2_vision_model'"),
        ("SiglipVision", {**VIT, "vision_use_head": False}, "has no pooling head"),
        ("Aimv2Vision", {**VIT, "use_head": False}, "has no pooling head"),
    ],
)
def test_a_tower_whose_feature_is_not_known_is_refused_by_name(
    tmp_path: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    make(name, tmp_path, **settings)
    for pretrained in (True, False):
        with pytest.raises(UserError, match=message):
            load_image_tower(str(tmp_path), pretrained=pretrained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": [32, 64]}, "its image_size is 32×64; use a tower for square images"),
        ({"patch_size": [8, 16]}, "its patch_size is 8×16; use a tower for square images"),
        ({"num_channels": 1}, "takes images of 1 channels; use a tower for RGB images"),
    ],
)
def test_a_tower_for_other_images_than_square_rgb_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    transformers.ViTConfig(**VIT | change).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        load_image_tower(str(tmp_path))


def test_sides_that_are_given_twice_are_read_as_one(tmp_path: Path) -> None:
    transformers.ViTConfig(**VIT | {"image_size": [32, 32], "patch_size": [8, 8]}).save_pretrained(tmp_path)
    tower = load_image_tower(str(tmp_path), pretrained=False, image_size=64)
    assert tower(torch.rand(1, 3, 64, 64)).shape == (1, 32)


def test_a_pooling_head_that_the_files_lack_is_not_drawn_at_random(tmp_path: Path) -> None:
    model = transformers.BeitModel(transformers.BeitConfig(**VIT), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"its files lack 2 weights, such as pooler\.layernorm\.bias"):
        load_image_tower(str(tmp_path))


@pytest.mark.parametrize("name", ["Swin", "SiglipVision", "IJepa", "ViT"])
def test_a_saved_model_is_pooled_as_it_was_trained(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(**TOWERS[name][0])
    pooling = pooling_of(config, "tower")
    text = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
    model = towers.build(towers.describe_parts(config, text, TextSettings(), pooling)).eval()
    again = towers.build(towers.describe(model)).eval()
    again.load_state_dict(model.state_dict())
    pixels = torch.randn(2, 3, SIZE, SIZE)
    assert again.image.pooling == pooling and torch.equal(again.image(pixels), model.image(pixels))


def test_a_model_of_an_earlier_release_reads_the_first_token_as_it_did() -> None:
    config = transformers.SiglipVisionConfig(**VIT)
    text = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
    description = {"image": config.to_dict(), "text": text.to_dict(), "corner_tokens": 2, "mask": True}
    image = towers.build(description).eval().image
    pixels = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(image(pixels), image.vit(pixel_values=pixels).last_hidden_state[:, 0])


def test_features_of_another_pooling_are_stored_apart() -> None:
    vit = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VIT))
    ids = {tower_id(ImageTower(vit, pooling), ImageTransform(SIZE)) for pooling in ("class_token", "pooler")}
    assert len(ids) == 2


class Constant(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(1, 2, 3))[:, None] * 0 + 1


class Noisy(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return torch.randn(len(pixels), 4)


class Corner(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, :, :8, :8].flatten(1)


class Damaged(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) * float("nan")


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        (Constant(), "does not depend on the whole image"),
        (Corner(), "does not depend on the whole image"),
        (Noisy(), "different features at each call"),
        (Damaged(), "zero or not finite"),
    ],
)
def test_the_probe_finds_features_that_are_not_of_the_whole_image(tower: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_features(tower, SIZE, "image tower 'x'")
