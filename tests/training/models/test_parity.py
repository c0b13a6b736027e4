"""Token ids equal those of the authors' published code; features, loss and gradients agree within 1e-5."""

import pytest
import torch

from lotlip_data.training.loss import lotlip_loss
from tests.training.models import reference
from tests.training.models.reference import META, expected

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


@pytest.mark.parametrize("corners", META["corner_tokens"])
def test_token_ids_equal_the_authors(corners):
    ids = reference.tokenizer(corners)(META["texts"])
    assert torch.equal(ids, expected(f"m{corners}.input_ids").long())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("corners", META["corner_tokens"])
def test_features_agree_with_the_authors_on_both_attention_paths(corners, attention):
    with torch.no_grad():
        features = reference.text_tower(corners, attention)(expected(f"m{corners}.input_ids").long())
    torch.testing.assert_close(features, expected(f"m{corners}.features"), **TOLERANCE)


@pytest.mark.parametrize("corners", META["corner_tokens"])
def test_features_do_not_depend_on_the_padding(corners):
    tokenizer = reference.tokenizer(corners)
    tower = reference.text_tower(corners, "sdpa")
    with torch.no_grad():
        for text, row in zip(META["texts"], expected(f"m{corners}.features"), strict=True):
            alone = tower(tokenizer.pad(tokenizer.encode([text]).ids))
            torch.testing.assert_close(alone[0], row, **TOLERANCE)


def test_the_mean_loss_and_its_gradients_agree_with_the_authors():
    image, text, scale = (
        expected(f"loss.{name}").clone().requires_grad_() for name in ("image_features", "text_features", "logit_scale")
    )
    settings = META["loss"]
    long = text[:, 1:].unflatten(1, (settings["long_texts"], settings["corner_tokens"] + 1))
    loss = lotlip_loss(image, text[:, 0], long, scale, reduction="mean")
    for name, value in (("total", loss.total), ("raw_term", loss.short), ("long_term", loss.long)):
        torch.testing.assert_close(value.detach(), expected(f"loss.{name}"), **TOLERANCE)
    loss.total.backward()
    for name, leaf in (("image_features", image), ("text_features", text), ("logit_scale", scale)):
        torch.testing.assert_close(leaf.grad, expected(f"loss.grad_{name}"), **TOLERANCE)


def test_the_sum_is_the_mean_times_the_number_of_terms():
    image, text = expected("loss.image_features"), expected("loss.text_features")
    long = text[:, 1:].unflatten(1, (3, 3))
    total = lotlip_loss(image, text[:, 0], long, torch.tensor(10.0), "sum").total
    mean = lotlip_loss(image, text[:, 0], long, torch.tensor(10.0), "mean").total
    torch.testing.assert_close(total, 10 * mean)
