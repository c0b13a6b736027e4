"""The attention mask is the paper's formula (Sec. 4.3), and its consequences hold."""

import pytest
import torch

from lotlip_data.training.models.corner_attention import PADDING, attention_mask, corner_mask
from tests.training.models import reference
from tests.training.models.reference import META, expected


@pytest.mark.parametrize("corners", range(5))
def test_the_mask_is_the_papers_formula_for_every_pair(corners):
    length = 9
    position = torch.arange(length)
    mask = corner_mask(position[:, None], position, corners)
    corner_positions = set(range(1, corners + 1))
    for q in range(length):
        for k in range(length):
            summary = corner_positions | {0}
            hidden = (k in corner_positions or (q in summary and k in summary)) and q != k
            assert bool(mask[q, k]) is not hidden, (q, k)


@pytest.mark.parametrize("corners", [2, 4])
def test_the_mask_of_a_recorded_text_is_the_authors(corners):
    ids = expected(f"m{corners}.input_ids")[:1]
    text = torch.where(ids == 0, PADDING, 0)
    mask = attention_mask(text, torch.arange(ids.shape[1])[None], corners, eager=False)
    assert torch.equal(mask[0, 0], expected(f"m{corners}.attention_mask_text0").bool())


def test_the_eager_mask_is_zero_where_a_token_is_visible_and_lowest_elsewhere():
    text = torch.tensor([[0, 0, 0, 0, 0, PADDING, PADDING]])
    visible = attention_mask(text, torch.arange(7)[None], 2, eager=False)
    added = attention_mask(text, torch.arange(7)[None], 2, eager=True)
    assert (added[visible] == 0).all() and (added[~visible] == torch.finfo(torch.float32).min).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_cls_feature_does_not_depend_on_the_corner_embeddings(attention):
    tower = reference.text_tower(2, attention)
    ids = expected("m2.input_ids").long()
    with torch.no_grad():
        before = tower(ids)
        tower.encoder.embeddings.word_embeddings.weight[META["vocab_size"] :] += torch.randn(2, META["hidden_size"])
        after = tower(ids)
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1:] - after[:, 1:]).abs().max() > 0.01


def test_a_corner_embedding_gets_no_gradient_from_the_cls_feature():
    tower = reference.text_tower(2, "sdpa")
    tower(expected("m2.input_ids").long())[:, 0].sum().backward()
    gradient = tower.encoder.embeddings.word_embeddings.weight.grad[META["vocab_size"] :]
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_without_the_mask_rule_the_cls_feature_depends_on_the_register_tokens():
    tower = reference.text_tower(2, "sdpa")
    tower.settings = type(tower.settings)(corner_tokens=2, mask=False)
    ids = expected("m2.input_ids").long()
    with torch.no_grad():
        before = tower(ids)
        tower.encoder.embeddings.word_embeddings.weight[META["vocab_size"] :] += torch.randn(2, META["hidden_size"])
        assert (tower(ids)[:, 0] - before[:, 0]).abs().max() > 0.001


def test_each_text_of_a_row_has_the_mask_of_a_single_text():
    text = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, PADDING]])
    position = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0]])
    mask = attention_mask(text, position, 2, eager=False)[0, 0]
    for span in (slice(0, 4), slice(4, 9)):
        alone = position[0, span]
        assert torch.equal(mask[span, span], corner_mask(alone[:, None], alone, 2))
    assert not mask[:4, 4:].any() and not mask[4:9, :4].any() and not mask[:, 9].any()
    assert mask.any(1).all()  # a query that sees nothing has no softmax
