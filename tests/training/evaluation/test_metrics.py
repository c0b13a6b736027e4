"""Recall and accuracy against their definitions, and against clip_benchmark's own."""

import pytest
import torch
import torch.nn.functional as F

from lotlip_data.training.evaluation import metrics as retrieval
from tests.training.peak_memory import peak_memory


def _unit(rows, seed, dim=8):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_recall_is_what_sorting_gives_also_with_several_texts_an_image(monkeypatch):
    monkeypatch.setattr(retrieval, "SCORES", 7 * 60)  # several blocks, and one that is not full
    monkeypatch.setattr(retrieval, "GALLERY", 7)
    image, text = _unit(20, 0), _unit(60, 1)
    owner = [j // 3 for j in range(60)]
    found = retrieval.recall(image, text, owner, ks=(1, 5))
    scores = text @ image.T
    for k in (1, 5):
        hits = [owner[j] in scores[j].argsort(descending=True)[:k].tolist() for j in range(60)]
        assert found["t2i"][f"R@{k}"] == pytest.approx(sum(hits) / 60)
        hits = [i in [owner[j] for j in scores[:, i].argsort(descending=True)[:k].tolist()] for i in range(20)]
        assert found["i2t"][f"R@{k}"] == pytest.approx(sum(hits) / 20)


class _Features:
    """What clip_benchmark takes for a model and a tokenizer: the "images" and "texts" are features or their rows."""

    def __init__(self, text):
        self.text = text

    def encode_image(self, images):
        return images

    def encode_text(self, rows):
        return self.text[rows]


@pytest.mark.parametrize("texts_an_image", [1, 5])
def test_recall_is_clip_benchmarks_on_the_same_features(texts_an_image):
    """R@1, R@5 and R@10 both ways, to the last image: features of which some are found and some are not."""
    metric = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    image = _unit(90, 2, dim=16)
    noise = _unit(90 * texts_an_image, 3, dim=16)
    text = F.normalize(image.repeat_interleave(texts_an_image, dim=0) + 1.6 * noise, dim=-1)
    rows = [[str(i * texts_an_image + t) for t in range(texts_an_image)] for i in range(90)]
    batches = [(image[i : i + 40], rows[i : i + 40]) for i in range(0, 90, 40)]
    theirs = metric.evaluate(
        _Features(text), batches, lambda some: torch.tensor([int(row) for row in some]), "cpu", False, [1, 5, 10]
    )
    ours = retrieval.recall(image, text, [j // texts_an_image for j in range(len(text))])
    assert 0.1 < ours["t2i"]["R@1"] < ours["t2i"]["R@10"] < 1
    for k in (1, 5, 10):
        assert ours["t2i"][f"R@{k}"] == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
        assert ours["i2t"][f"R@{k}"] == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)


@pytest.mark.parametrize(("images", "texts_an_image"), [(5_000, 5), (10_000, 1)])
def test_the_largest_tasks_fit_in_64_mib_beside_their_features(images, texts_an_image):
    """MSCOCO's 25,000 × 5,000 and ShareGPT4V's 10,000 × 10,000: a matrix of scores would be 400 to 500 MB."""
    image = _unit(images, 4, dim=32)
    text = image.repeat_interleave(texts_an_image, dim=0)
    with peak_memory() as memory:
        found = retrieval.recall(image, text, torch.arange(images).repeat_interleave(texts_an_image).tolist())
    assert found["t2i"]["R@1"] == found["i2t"]["R@1"] == 1.0
    assert memory.peak < 64 * 2**20


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


def test_what_is_no_number_is_found_nowhere():
    """Pessimistic to the end: no score is below what is no number, so all wrong items come before the right one."""
    nothing = torch.full((20, 4), torch.nan)
    assert set(retrieval.recall(nothing, nothing, range(20))["t2i"].values()) == {0.0}
    assert retrieval.accuracy(nothing, nothing, range(20)) == 0.0
