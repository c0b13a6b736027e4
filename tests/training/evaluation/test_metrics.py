"""Recall and accuracy equal their definitions, and those of clip_benchmark."""

import pytest
import torch
import torch.nn.functional as F

from lotlip_data.training.evaluation import metrics
from tests.training.peak_memory import peak_memory


def _unit(rows, seed, dim=8):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_recall_equals_that_of_sorting_with_several_texts_per_image(monkeypatch):
    monkeypatch.setattr(metrics, "SCORES_PER_BLOCK", 7 * 60)  # several blocks, the last of them not full
    monkeypatch.setattr(metrics, "GALLERY_ROWS_PER_BLOCK", 7)
    image, text = _unit(20, 0), _unit(60, 1)
    image_of_text = [j // 3 for j in range(60)]
    recall = metrics.recall(image, text, image_of_text, ks=(1, 5))
    scores = text @ image.T
    for k in (1, 5):
        hits = [image_of_text[j] in scores[j].argsort(descending=True)[:k].tolist() for j in range(60)]
        assert recall["t2i"][f"R@{k}"] == pytest.approx(sum(hits) / 60)
        hits = [i in [image_of_text[j] for j in scores[:, i].argsort(descending=True)[:k].tolist()] for i in range(20)]
        assert recall["i2t"][f"R@{k}"] == pytest.approx(sum(hits) / 20)


class _Features:
    """A model and tokenizer for clip_benchmark whose "images" are features and whose "texts" are rows of features."""

    def __init__(self, text):
        self.text = text

    def encode_image(self, images):
        return images

    def encode_text(self, rows):
        return self.text[rows]


@pytest.mark.parametrize("texts_per_image", [1, 5])
def test_recall_equals_clip_benchmarks_on_the_same_features(texts_per_image):
    """R@1, R@5 and R@10 in both directions, on features of which some are found and some are not."""
    metric = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    image = _unit(90, 2, dim=16)
    noise = _unit(90 * texts_per_image, 3, dim=16)
    text = F.normalize(image.repeat_interleave(texts_per_image, dim=0) + 1.6 * noise, dim=-1)
    rows = [[str(i * texts_per_image + t) for t in range(texts_per_image)] for i in range(90)]
    batches = [(image[i : i + 40], rows[i : i + 40]) for i in range(0, 90, 40)]
    theirs = metric.evaluate(
        _Features(text), batches, lambda batch: torch.tensor([int(row) for row in batch]), "cpu", False, [1, 5, 10]
    )
    ours = metrics.recall(image, text, [j // texts_per_image for j in range(len(text))])
    assert 0.1 < ours["t2i"]["R@1"] < ours["t2i"]["R@10"] < 1
    for k in (1, 5, 10):
        assert ours["t2i"][f"R@{k}"] == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
        assert ours["i2t"][f"R@{k}"] == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)


@pytest.mark.parametrize(("images", "texts_per_image"), [(5_000, 5), (10_000, 1)])
def test_the_largest_tasks_take_less_than_64_mib_besides_their_features(images, texts_per_image):
    """MSCOCO's 25,000 × 5,000 and ShareGPT4V's 10,000 × 10,000: a matrix of scores would be 400 to 500 MB."""
    image = _unit(images, 4, dim=32)
    text = image.repeat_interleave(texts_per_image, dim=0)
    with peak_memory() as memory:
        recall = metrics.recall(image, text, torch.arange(images).repeat_interleave(texts_per_image).tolist())
    assert recall["t2i"]["R@1"] == recall["i2t"]["R@1"] == 1.0
    assert memory.peak < 64 * 2**20


def test_distractors_are_in_the_gallery_of_texts_and_are_no_queries():
    """The recall of texts is that of a gallery without the distinction; that of images does not change."""
    image, text = _unit(12, 1), _unit(16, 2)
    image_of_text = [j % 8 for j in range(16)]
    with_distractors = metrics.recall_hits(image, text, image_of_text, distractors=4)
    scores = text.double() @ image.double().T
    for k, name in ((1, "R@1"), (5, "R@5")):
        first = scores.argsort(dim=1, descending=True)[:, :k].tolist()
        expected = [i in found for i, found in zip(image_of_text, first, strict=True)]
        assert with_distractors["t2i"][name].tolist() == expected
    without = metrics.recall_hits(image[:8], text, image_of_text)
    assert {name: hits.tolist() for name, hits in with_distractors["i2t"].items()} == {
        name: hits.tolist() for name, hits in without["i2t"].items()
    }
    with pytest.raises(ValueError, match="image 8 has no text"):
        metrics.recall_hits(image, text, image_of_text, distractors=3)


def test_ties_count_against_the_model():
    equal = _unit(1, 0).expand(5, -1)
    recall = metrics.recall(equal, equal, range(5), ks=(1, 5))
    assert recall == {way: {"R@1": 0.0, "R@5": 1.0} for way in ("t2i", "i2t")}
    assert metrics.accuracy(equal, equal, range(5)) == 0.0


def test_the_texts_of_one_image_do_not_compete_with_each_other():
    image = torch.eye(2)
    text = torch.eye(2).repeat_interleave(2, dim=0)
    assert metrics.recall(image, text, [0, 0, 1, 1], ks=(1,))["i2t"]["R@1"] == 1.0


def test_accuracy_is_the_share_of_images_whose_class_scores_highest():
    classes = torch.eye(3)
    assert metrics.accuracy(torch.eye(3)[[0, 1, 2, 2]], classes, [0, 1, 2, 0]) == 0.75


def test_an_image_without_text_is_an_error():
    with pytest.raises(ValueError, match="image 1 has no text"):
        metrics.recall(torch.eye(2), torch.eye(2), [0, 0])


def test_nan_features_count_against_the_model():
    """No score is below a NaN, so all wrong items rank before the right one."""
    features = torch.full((20, 4), torch.nan)
    assert set(metrics.recall(features, features, range(20))["t2i"].values()) == {0.0}
    assert metrics.accuracy(features, features, range(20)) == 0.0
