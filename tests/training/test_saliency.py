"""The saliency map of a text over an image is the effect of each patch on their similarity."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.models.lotlip import load_model
from lotlip_data.training.saliency import saliency
from tests.training.run_fixture import write_towers

TEXT = "A large red circle is at the top left. A small blue square is at the centre."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(make_config(**write_towers(tmp_path_factory.mktemp("towers")), context_length=24))


def similarity_without(vit, pixels, text, patch, share):
    """The similarity in float64 if [CLS] attends to one patch by `share` less, computed by another attention."""

    def attention(module, query, key, value, mask, scaling, **_):
        weights = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1)
        weights = weights * (1 - share * F.one_hot(torch.tensor(1 + patch), weights.shape[-1]))
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register("reduced-attention", attention)
    vit.set_attn_implementation("reduced-attention")
    return (F.normalize(vit(pixel_values=pixels).last_hidden_state[0, 0], dim=-1) @ text).item()


def test_the_saliency_of_a_patch_is_the_loss_of_similarity_without_it(model):
    image = render(sample_scene(1), 96)
    result = saliency(model, image, TEXT)
    vit, text = copy.deepcopy(model.towers.image.vit).double(), model.embed_texts([TEXT])[0].double()
    pixels = model.transform([image]).double()
    with torch.no_grad():
        losses = [
            (similarity_without(vit, pixels, text, p, -1e-4) - similarity_without(vit, pixels, text, p, 1e-4)) / 2e-4
            for p in range(9)
        ]
    expected = torch.tensor(losses).clamp(min=0).view(3, 3).float()
    assert expected.max() > 0
    torch.testing.assert_close(result.patches, expected, rtol=1e-3, atol=1e-7)


def test_similarity_and_truncation_are_reported_and_the_model_is_unchanged(model):
    image = render(sample_scene(2), 96)
    before = {name: value.clone() for name, value in model.towers.state_dict().items()}
    attention = model.towers.image.vit.config._attn_implementation
    short, long = saliency(model, image, "A red circle."), saliency(model, image, TEXT * 3)
    expected = (model.embed_images([image]) @ model.embed_texts(["A red circle."]).T).item()
    assert short.similarity == pytest.approx(expected, abs=1e-5)
    assert (short.truncated, long.truncated) == (False, True)
    assert model.towers.image.vit.config._attn_implementation == attention != "eager"
    assert all(torch.equal(before[name], value) for name, value in model.towers.state_dict().items())
    assert all(value.grad is None for value in model.towers.parameters())
