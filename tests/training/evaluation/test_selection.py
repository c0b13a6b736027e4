"""Selection of captions: the accuracy is that of the published formulas, and its outcomes come back as they were."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation import selection
from lotlip_data.training.evaluation.outcomes import decode_outcomes
from lotlip_data.training.evaluation.selection import OVERALL, selection_hits, selection_outcomes, text_only_hits
from tests.training.peak_memory import peak_memory


def _unit(count, seed, dim=8):
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _queries(count, texts, right, wrong, seed=0):
    """Images and captions of random queries: `right` right ones, and up to `wrong` wrong ones."""
    random = np.random.default_rng(seed)
    rows = [random.permutation(texts)[: right + random.integers(1, wrong + 1)].tolist() for _ in range(count)]
    images = random.integers(0, count // 2, count).tolist()
    return images, [each[:right] for each in rows], [each[right:] for each in rows]


@pytest.mark.parametrize(("right", "wrong"), [(1, 1), (1, 10), (2, 1), (5, 35)])
@pytest.mark.parametrize("block", [3, 2**11])
def test_a_query_is_hit_if_every_right_caption_scores_above_every_wrong_one(monkeypatch, right, wrong, block):
    """The plain formula, one query at a time in float64: of SugarCrepe (1, 1), of FG-OVD (1, 10), and so on."""
    monkeypatch.setattr(selection, "_SCORES_PER_BLOCK", block)
    image, text = _unit(40, 1), _unit(200, 2)
    queries = _queries(80, 200, right, wrong)
    expected = [
        min(float(image[i].double() @ text[a].double()) for a in rights)
        > max(float(image[i].double() @ text[b].double()) for b in wrongs)
        for i, rights, wrongs in zip(*queries, strict=True)
    ]
    hits = selection_hits(image, queries[0], text, *queries[1:])
    assert hits.tolist() == expected and 0 < sum(expected) < 80


def test_subcrop_caption_matching_is_that_of_sdcis_pooled_similarities():
    """DCI's code pools a matrix of images and captions: the best caption of other images, the worst of its own."""
    batch, captions = 8, 5
    image = _unit(batch, 3)
    text = F.normalize(image.repeat_interleave(captions, 0) + 0.75 * _unit(batch * captions, 4), dim=-1)
    groups = (image @ text.T).reshape(batch, batch, captions)
    pooled = groups.amax(dim=2)
    pooled[range(batch), range(batch)] = groups.amin(dim=2).diagonal()
    expected = (pooled.argmax(dim=1) == torch.arange(batch)).tolist()
    own = [list(range(i * captions, (i + 1) * captions)) for i in range(batch)]
    others = [[row for row in range(len(text)) if row not in own[i]] for i in range(batch)]
    assert selection_hits(image, range(batch), text, own, others).tolist() == expected and 0 < sum(expected) < batch


def test_text_only_is_that_of_sugarcrepe_pps_formula():
    text = _unit(30, 5)
    _, right, wrong = _queries(40, 30, 2, 1)
    cos = (text.double() @ text.double().T).tolist()
    expected = [
        cos[p1][p2] > cos[p1][n] and cos[p1][p2] > cos[p2][n] for (p1, p2), [n] in zip(right, wrong, strict=True)
    ]
    assert text_only_hits(text, right, wrong).tolist() == expected and 0 < sum(expected) < 40


def test_ties_and_broken_features_count_against_the_model_and_no_wrong_caption_counts_for_it():
    image, text = _unit(1, 1), _unit(3, 2)
    text[1] = text[0]
    assert selection_hits(image, [0, 0], text, [[0], [0]], [[1], []]).tolist() == [False, True]
    text[2] = torch.nan
    assert selection_hits(image, [0, 0], text, [[0], [2]], [[2], [0]]).tolist() == [False, False]


def test_memory_does_not_grow_with_the_queries():
    image, text = _unit(1_000, 1, dim=256), _unit(5_000, 2, dim=256)
    queries = _queries(20_000, 5_000, 1, 10)
    queries = ([i % 1_000 for i in queries[0]], *queries[1:])
    with peak_memory() as memory:
        selection_hits(image, queries[0], text, *queries[1:])
    assert memory.peak < 48 * 2**20


CATEGORIES, PICTURES = ["a", "b", "a", "a", "b", "a"], [2, 0, 0, 2, 0, 1]


def _outcomes(has_overall=True):
    hits = {"accuracy": torch.tensor([True, False, False, True, True, False]), "text_only": torch.tensor([True] * 6)}
    outcomes = selection_outcomes(hits, CATEGORIES, PICTURES, "digest", has_overall=has_overall)
    figures = {
        figure: {name: float(found.mean()) for (kind, name), found in outcomes.hits.items() if kind == figure}
        for figure in hits
    }
    queries = {name: len(found) for (_, name), found in outcomes.hits.items()}
    return outcomes, figures | {"queries": queries, "images": 3, "texts": 9}


def test_the_queries_of_one_picture_are_together_in_every_category():
    outcomes, figures = _outcomes()
    assert {name: sizes.tolist() for name, sizes in outcomes.clusters.items()} == {
        OVERALL: [3, 1, 2],
        "a": [1, 1, 2],
        "b": [2],
    }
    assert outcomes.hits["accuracy", "a"].tolist() == [False, False, True, True]
    assert figures["accuracy"] == {OVERALL: 0.5, "a": 0.5, "b": 0.5}
    assert OVERALL not in _outcomes(has_overall=False)[1]["accuracy"]


def test_outcomes_of_a_selection_set_come_back():
    outcomes, figures = _outcomes()
    stored = json.loads(json.dumps(outcomes.encode()))
    assert stored["queries_per_image"] == {OVERALL: "3x1 1x1 2x1", "a": "1x2 2x1", "b": "2x1"}
    back = decode_outcomes(stored, figures, "m")
    assert {path: found.tolist() for path, found in back.hits.items()} == {
        path: found.tolist() for path, found in outcomes.hits.items()
    }
    assert back.intervals() == outcomes.intervals() and set(back.intervals()) == {"accuracy", "text_only"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("queries_per_image", "a"), "1x3"),
        (("queries_per_image", "a"), "4294967296x4294967296 1x4"),
        (("queries_per_image",), {}),
        (("accuracy", "b"), "AA=="),
        (("text_only",), None),
    ],
)
def test_damaged_outcomes_of_a_selection_set_are_an_error(path, value):
    outcomes, figures = _outcomes()
    stored = json.loads(json.dumps(outcomes.encode()))
    place = stored
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(UserError, match="the outcomes per query are damaged"):
        decode_outcomes(stored, figures, "m")
