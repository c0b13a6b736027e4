"""Recall and accuracy against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from lotlip_data.training import retrieval


def _unit(rows, seed, dim=8):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_recall_is_what_sorting_gives_also_with_several_texts_an_image(monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", 7)  # several blocks, and one that is not full
    image, text = _unit(20, 0), _unit(60, 1)
    owner = [j // 3 for j in range(60)]
    found = retrieval.recall(image, text, owner, ks=(1, 5))
    scores = text @ image.T
    for k in (1, 5):
        hits = [owner[j] in scores[j].argsort(descending=True)[:k].tolist() for j in range(60)]
        assert found["t2i"][f"R@{k}"] == pytest.approx(sum(hits) / 60)
        hits = [i in [owner[j] for j in scores[:, i].argsort(descending=True)[:k].tolist()] for i in range(20)]
        assert found["i2t"][f"R@{k}"] == pytest.approx(sum(hits) / 20)


def test_ties_count_against_the_model():
    same = _unit(1, 0).expand(5, -1)
    found = retrieval.recall(same, same, range(5), ks=(1, 5))
    assert found == {way: {"R@1": 0.0, "R@5": 1.0} for way in ("t2i", "i2t")}
    assert retrieval.accuracy(same, same, range(5)) == 0.0


def test_an_images_own_texts_do_not_compete_with_each_other():
    image = torch.eye(2)
    text = torch.eye(2).repeat_interleave(2, dim=0)
    assert retrieval.recall(image, text, [0, 0, 1, 1], ks=(1,))["i2t"]["R@1"] == 1.0


def test_accuracy_is_the_share_whose_own_class_scores_highest():
    classes = torch.eye(3)
    assert retrieval.accuracy(torch.eye(3)[[0, 1, 2, 2]], classes, [0, 1, 2, 0]) == 0.75


def test_an_image_without_text_is_refused():
    with pytest.raises(ValueError, match="image 1 has no text"):
        retrieval.recall(torch.eye(2), torch.eye(2), [0, 0])
