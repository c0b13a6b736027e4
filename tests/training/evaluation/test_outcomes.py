"""Outcomes are stored compactly, come back as they were, and damage to them is an error."""

import copy
import json

import numpy as np
import pytest
import torch

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation import metrics
from lotlip_data.training.evaluation.outcomes import Outcomes, decode_outcomes, retrieval_outcomes

IMAGE_OF_TEXT = [2, 0, 0, 1, 2, 2]


def _retrieval():
    """Three images with two, one and three texts, which are not in the order of their images."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(3, 4, generator=generator), torch.randn(6, 4, generator=generator)
    hits = metrics.recall_hits(image, text, IMAGE_OF_TEXT, ks=(1, 2))
    figures = metrics.shares(hits) | {"images": 3, "texts": 6}
    assert {way: figures[way] for way in ("t2i", "i2t")} == metrics.recall(image, text, IMAGE_OF_TEXT, ks=(1, 2))
    return hits, figures


def test_outcomes_come_back_with_the_texts_of_each_image_together():
    hits, figures = _retrieval()
    stored = json.loads(json.dumps(retrieval_outcomes(hits, IMAGE_OF_TEXT, "digest").encode()))
    assert stored["texts_per_image"] == "2x1 1x1 3x1"
    outcomes = decode_outcomes(stored, figures, "m")
    assert outcomes.queries == "digest" and outcomes.clusters["t2i"].tolist() == [2, 1, 3]
    for name, found in hits["t2i"].items():
        assert outcomes.hits["t2i", name].tolist() == found[[1, 2, 3, 0, 4, 5]].tolist()
        assert outcomes.cluster_sizes(("t2i", name)).tolist() == [2, 1, 3]
        assert outcomes.hits["i2t", name].tolist() == hits["i2t"][name].tolist()
        assert outcomes.cluster_sizes(("i2t", name)).tolist() == [1, 1, 1]
    assert set(outcomes.intervals()["t2i"]) == {"R@1", "R@2"}


def test_outcomes_of_classification_come_back():
    stored = Outcomes("d", {("top1",): np.array([True, False, True])}).encode()
    outcomes = decode_outcomes(stored, {"top1": 2 / 3, "images": 3}, "m")
    assert outcomes.hits["top1",].tolist() == [True, False, True] and set(stored) == {"queries", "top1"}


def test_100_000_queries_take_less_than_20_kb_per_figure():
    random = torch.Generator().manual_seed(0)
    hits = {way: {f"R@{k}": torch.rand(100_000, generator=random) < 0.5 for k in (1, 5, 10)} for way in ("t2i", "i2t")}
    size = len(json.dumps(retrieval_outcomes(hits, range(100_000), "digest").encode()))
    assert size < 6 * 20_000


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("t2i", "R@1"), "not base64"),
        (("t2i", "R@1"), ""),
        (("t2i", "R@1"), "AAAA"),
        (("t2i", "R@1"), 7),
        (("t2i", "R@1"), None),
        (("t2i",), "AA=="),
        (("i2t", "R@2"), "AA=="),
        (("texts_per_image",), "1x3"),
        (("texts_per_image",), "2x99999999999999"),
        (("texts_per_image",), "99999999999999999999x1"),
        (("texts_per_image",), "0x1 3x2"),
        (("texts_per_image",), "many"),
        (("texts_per_image",), 3),
        (("queries",), None),
    ],
)
def test_damaged_outcomes_are_an_error_with_its_remedy(path, value):
    hits, figures = _retrieval()
    stored = copy.deepcopy(retrieval_outcomes(hits, IMAGE_OF_TEXT, "digest").encode())
    place = stored
    for name in path[:-1]:
        place = place[name]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    figures = figures | {"i2t": {"R@1": figures["i2t"]["R@1"], "R@2": 1.0}} if path == ("i2t", "R@2") else figures
    with pytest.raises(
        UserError, match=r"^m, DCI: the outcomes per query are damaged \(.*\); evaluate this model again"
    ):
        decode_outcomes(stored, figures, "m, DCI")
