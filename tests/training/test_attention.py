"""The mask against the paper's formula, and what follows from it."""

import pytest
import torch

from lotlip_data.training.attention import attention_mask, corner_mask
from tests.training import reference
from tests.training.reference import META, expected


@pytest.mark.parametrize("corners", range(5))
def test_the_mask_is_the_papers_formula_for_every_pair(corners):
    length = 9
    mask = corner_mask(length, corners)
    corner_positions = set(range(1, corners + 1))
    for q in range(length):
        for k in range(length):
            summary = corner_positions | {0}
            hidden = (k in corner_positions or (q in summary and k in summary)) and q != k
            assert bool(mask[q, k]) is not hidden, (q, k)


@pytest.mark.parametrize("corners", [2, 4])
def test_the_mask_of_a_real_text_is_the_authors(corners):
    ids = expected(f"m{corners}.input_ids")[:1]
    mask = attention_mask(ids != 0, corners, eager=False)
    assert torch.equal(mask[0, 0], expected(f"m{corners}.attention_mask_text0").bool())


def test_the_eager_mask_is_zero_where_seen_and_lowest_elsewhere():
    real = torch.tensor([[True] * 5 + [False] * 2])
    seen = attention_mask(real, 2, eager=False)
    added = attention_mask(real, 2, eager=True)
    assert (added[seen] == 0).all() and (added[~seen] == torch.finfo(torch.float32).min).all()


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
