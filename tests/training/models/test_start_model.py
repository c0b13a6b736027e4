"""A training that starts from a model of this project has its features, and fresh corner tokens where it has none."""

from pathlib import Path

import pytest
import torch

from lotlip_data.manifests.errors import UserError
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.models.lotlip import LoTLIP, load_image_side, load_model

IMAGES = [render(sample_scene(seed)) for seed in SPLITS["evaluation"][:3]]
TEXTS = ["A red ring.", "A small blue heart is at the top left. A star."]
TOWERS = {"image_tower": "tiny-vit", "text_tower": "tiny-bert", "long_texts": 1, "context_length": 64}


def saved(folder: Path, corner_tokens: int) -> LoTLIP:
    """A model whose weights differ from those of its towers, as after a training."""
    torch.manual_seed(1)
    model = load_model(make_config("lotlip", corner_tokens=corner_tokens, **TOWERS))
    with torch.no_grad():
        for parameter in model.towers.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.towers.eval()
    model.save(str(folder))
    return model


def start(folder: Path, method: str = "lotlip", **settings: object) -> LoTLIP:
    settings = {"long_texts": 1, "context_length": 64, **settings}
    model = load_model(make_config(method, start_from=str(folder), **settings))
    model.towers.eval()
    return model


@pytest.mark.parametrize("corner_tokens", [0, 2])
def test_the_first_step_has_the_features_of_the_model(tmp_path: Path, corner_tokens: int) -> None:
    model = saved(tmp_path, corner_tokens)
    again = start(tmp_path, corner_tokens=corner_tokens)
    assert again.towers.state_dict().keys() == model.towers.state_dict().keys()
    for name, weights in model.towers.state_dict().items():
        assert torch.equal(again.towers.state_dict()[name], weights), name
    assert torch.equal(again.embed_texts(TEXTS), model.embed_texts(TEXTS))
    assert torch.equal(again.embed_images(IMAGES), model.embed_images(IMAGES))
    tower, transform = load_image_side(f"clip:{tmp_path}")
    assert torch.equal(tower(transform(IMAGES)), model.towers.image(model.transform(IMAGES)))


def test_corner_tokens_that_the_model_lacks_are_fresh_and_change_no_other_embedding(tmp_path: Path) -> None:
    model = saved(tmp_path, 1)
    words = model.towers.text.encoder.get_input_embeddings().weight
    more = start(tmp_path, corner_tokens=3).towers.text.encoder.get_input_embeddings().weight
    none = start(tmp_path, "lit_long").towers.text.encoder.get_input_embeddings().weight
    assert torch.equal(more[: len(words)], words) and len(more) == len(words) + 2
    assert 0 < more[len(words) :].std() < 0.04
    assert torch.equal(none, words[:-1])


def test_texts_of_another_form_than_the_model_has_learned_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 0)
    start(tmp_path, corner_tokens=0)
    assert "was trained with" not in caplog.text
    start(tmp_path, corner_tokens=0, context_length=32, text_form="punkt")
    assert "was trained with context_length 64 (here 32) and text_form authors (here punkt)" in caplog.text


def test_all_weights_of_the_text_tower_learn(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    assert all(parameter.requires_grad for parameter in start(tmp_path).towers.text.parameters())


def test_a_wrong_folder_or_image_size_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "train" / "model", 0)
    with pytest.raises(UserError, match=rf"its subfolder `model` is one; give {tmp_path}/train/model"):
        start(tmp_path / "train")
    with pytest.raises(UserError, match=r"image_size: .*model has images of 96 pixels; remove it"):
        start(tmp_path / "train" / "model", image_size=64)
    weights = tmp_path / "train" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        start(tmp_path / "train" / "model")
